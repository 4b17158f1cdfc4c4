"""Searches for plans: their results, compared with exhaustive search; and callbacks that end them."""

import itertools
import json
import math
import os
import signal
import sys
import threading

import pytest

import arrowquant as aq
from common import BITS, noise

ROWS, COLS = 16, 64
NAMES = [f"layers.{i}.weight" for i in range(7)]
FORMATS = ["int2", "int4", "int8"]
SETTINGS = {"candidates": "int2:32,int4:32,int8:32", "avg_bits": 6.2, "min_cosine": None}


@pytest.fixture(scope="module")
def model():
    return {name: noise(i, ROWS, COLS) for i, name in enumerate(NAMES)}


def plane_bytes(format):
    return ROWS * (COLS * BITS[format] // 8 + 2 * COLS // 32)


def worth(formats):
    """Consecutive layers are as good as the worst of them: not a sum."""
    bits = [BITS[format] for format in formats]
    pairs = zip(bits, bits[1:])
    return sum(10 * min(a, b) for a, b in pairs) + sum((i + 1) * b for i, b in enumerate(bits))


def fitness(plan):
    return worth([plan[name].format for name in NAMES])


def evolve(model, function=fitness, **how):
    return aq.evolve(model, function, **{"population": 16, "generations": 6, **SETTINGS, **how})


def test_a_search_finds_the_best_of_all(model):
    limit = math.floor(6.2 * ROWS * COLS * len(NAMES) / 8)
    fitting = [
        formats
        for formats in itertools.product(FORMATS, repeat=len(NAMES))
        if sum(map(plane_bytes, formats)) <= limit
    ]
    best = max(fitting, key=worth)
    assert 300 < len(fitting) < 3 ** len(NAMES)
    assert len(evolve(model, generations=0).history) == 1
    found = evolve(model, generations=12)
    assert found.limit_bytes == limit
    assert [found.plan[name].format for name in NAMES] == list(best)
    assert found.fitness == worth(best) == found.history[-1].best
    # The budget knows of no such fitness.
    budget = aq.Plan.create(model, **SETTINGS)
    assert found.start == fitness(budget) < found.fitness
    assert not found.additive and not found.stopped and found.seed == 0
    assert found.history[-1].bytes == sum(map(plane_bytes, best))
    assert [one.generation for one in found.history] == list(range(13))
    bests = [one.best for one in found.history]
    assert bests == sorted(bests) and all(one.mean <= one.best for one in found.history)
    # It is a plan like others.
    data, report = found.plan.run_to_bytes(model)
    assert [report[name].format for name in NAMES] == list(best)
    assert found.to_dict() == json.loads(found.to_json())
    assert found.to_dict()["generations"][-1]["best"] == found.fitness


def test_every_candidate_obeys_the_limit_and_is_tried_once(model):
    seen = []

    def note(plan):
        formats = tuple(entry.format for entry in plan)
        seen.append(formats)
        assert sum(entry.bytes for entry in plan) == sum(map(plane_bytes, formats))
        return worth(formats)

    found = evolve(model, note)
    assert len(seen) == len(set(seen)) == found.history[-1].evaluations > 20
    assert all(sum(map(plane_bytes, formats)) <= found.limit_bytes for formats in seen)


def test_the_same_seed_is_the_same_search(model):
    found = evolve(model, seed=3)
    assert evolve(model, seed=3).to_json() == found.to_json()
    for threads in (1, 2):
        callers = set()

        def note(plan):
            callers.add(threading.get_ident())
            return fitness(plan)

        parallel = evolve(model, note, seed=3, parallel=True, threads=threads)
        assert parallel.to_json() == found.to_json()
        assert parallel.plan.to_json() == found.plan.to_json()
        assert threading.get_ident() not in callers
    assert evolve(model, seed=4).history != found.history


def test_parallel_calls_are_at_once(model):
    barrier = threading.Barrier(2)
    met = []

    def meet(plan):
        if not met:
            barrier.wait(20)
            met.append(1)
        return fitness(plan)

    evolve(model, meet, parallel=True, threads=2, generations=1)
    assert met


def test_without_a_fitness_the_budget_is_the_best_already(model):
    found = aq.evolve(model, **SETTINGS, population=10, generations=3)
    assert found.additive and found.fitness == found.start
    budget = aq.Plan.create(model, **SETTINGS)
    assert [e.format for e in found.plan] == [e.format for e in budget]
    # Of a plan that sets no budget its own size is one.
    own = aq.evolve(model, bits=4, population=10, generations=1)
    uniform = aq.Plan.create(model, bits=4)
    assert sum(e.bytes for e in own.plan) <= own.limit_bytes
    assert own.limit_bytes <= sum(e.bytes for e in uniform)


# Candidates


def test_a_candidate_is_one_until_the_call_ends(model):
    kept = []

    def look(plan):
        kept.append(plan)
        assert len(plan) == len(NAMES) and not plan.closed and "layers.0.weight" in plan.to_json()
        with pytest.raises(aq.ArgumentError, match="a candidate cannot be changed"):
            plan.set(NAMES[0], "keep")
        copy = aq.Plan.from_json(plan.to_json())
        copy.set(NAMES[0], "keep")
        assert copy[0].format == "kept" != plan[0].format
        data, _ = plan.run_to_bytes(model)
        with aq.open(data) as opened:
            assert len(opened) == len(NAMES)
        assert plan.file_bytes(model) > 0 and plan.modality and plan.warnings == ()
        return 1.0

    evolve(model, look, population=4, generations=1)
    assert len(kept) >= 4
    for plan in kept:
        for use in [
            lambda: plan[0], lambda: len(plan), lambda: plan.to_json(), lambda: plan.modality,
            lambda: plan.run_to_bytes(model), lambda: plan.set(NAMES[0], "keep"),
            lambda: plan.file_bytes(model), lambda: plan.evidence,
        ]:
            with pytest.raises(aq.ArgumentError, match="the Plan is closed"):
                use()
        assert plan.closed and "closed" in repr(plan)


def test_a_candidate_may_be_closed_and_its_handle_is_of_no_use_later(model):
    handles = []

    def close(plan):
        handles.append(plan._open())
        with plan:
            return float(len(plan))

    assert evolve(model, close, generations=1).fitness == len(NAMES)
    lib = aq.plan.lib
    for handle in handles:
        with handle.shared() as nothing, pytest.raises(aq.ArgumentError, match="aq_plan is NULL"):
            aq.plan.call(lib.aq_plan_to_json, nothing, None)


# Endings


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["fitness", "on_generation"])
def test_exceptions_end_the_search_and_are_raised(where, kind, parallel, model):
    wanted = kind("now")
    calls = []

    def fail(*_):
        calls.append(1)
        raise wanted

    how = {"parallel": parallel, "threads": 2}
    with pytest.raises(kind) as caught:
        if where == "fitness":
            evolve(model, fail, **how)
        else:
            evolve(model, on_generation=fail, **how)
    assert caught.value is wanted and "fail" in [entry.name for entry in caught.traceback]
    assert 1 <= len(calls) <= (2 if parallel and where == "fitness" else 1)


@pytest.mark.parametrize("parallel", [False, True])
def test_ctrl_c_ends_the_search(parallel, model):
    """A search ends at once, even if other threads are working."""
    done = threading.Event()

    def interrupt(plan):
        if threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)
            done.wait(20)
        elif not done.is_set():
            done.set()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return fitness(plan)

    with pytest.raises(KeyboardInterrupt):
        evolve(model, interrupt, parallel=parallel, threads=2, generations=1000)
    # And nothing is left of it.
    assert evolve(model).fitness > 0


def test_searches_run_on_any_thread(model):
    found = {}

    def work(parallel):
        found[parallel] = evolve(model, parallel=parallel, threads=2).to_json()

    threads = [threading.Thread(target=work, args=(parallel,)) for parallel in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[False] == found[True] == evolve(model).to_json()


def test_what_is_no_fitness_is_refused(model):
    with pytest.raises(aq.ConfigError, match="fitness: a candidate's is NaN"):
        evolve(model, lambda plan: math.nan)
    with pytest.raises(aq.ConfigError, match="fitness: a candidate's is inf"):
        evolve(model, lambda plan: math.inf)
    with pytest.raises(TypeError):
        evolve(model, lambda plan: None)
    with pytest.raises(TypeError, match="fitness must be callable, not int"):
        evolve(model, 3)
    with pytest.raises(TypeError, match="on_generation must be callable"):
        evolve(model, on_generation=1)
    for how in [{"population": 1}, {"population": -1}, {"generations": -1}, {"generations": 1 << 32}]:
        with pytest.raises(aq.ConfigError, match=next(iter(how))):
            evolve(model, **how)
    with pytest.raises(aq.ArgumentError, match="resume without a checkpoint"):
        evolve(model, resume=True)
    # However bad, numbers are numbers.
    assert evolve(model, lambda plan: -sys.float_info.max).fitness == -sys.float_info.max


def test_minus_infinity_ends_with_the_best_so_far(model):
    seen = []

    def until(plan):
        seen.append(fitness(plan))
        return -math.inf if len(seen) == 20 else seen[-1]

    found = evolve(model, until)
    assert found.stopped and len(seen) == 20 and found.fitness == max(seen[:19])
    assert len(found.history) == 1
    with pytest.raises(aq.Cancelled):
        evolve(model, lambda plan: -math.inf)


def test_generations_are_told_and_may_be_the_last(model):
    told = []
    found = evolve(model, on_generation=told.append)
    assert tuple(told) == found.history and not found.stopped
    found = evolve(model, on_generation=lambda one: one.generation < 2)
    assert found.stopped and found.history == tuple(told[:3])
    assert found.fitness == told[2].best


@pytest.mark.parametrize("parallel", [False, True])
def test_a_search_goes_on_where_it_ended(parallel, model, tmp_path):
    whole = evolve(model)
    file = tmp_path / "search.json"
    how = {"checkpoint": file, "resume": True, "parallel": parallel, "threads": 2}
    calls = []

    def note(plan):
        calls.append(1)
        if len(calls) == 30:
            raise RuntimeError("lost")
        return fitness(plan)

    with pytest.raises(RuntimeError, match="lost"):
        evolve(model, note, **how)
    before = json.loads(file.read_text())
    assert 1 <= len(before["history"]) < 7
    again = evolve(model, note, **how)
    assert again.to_json() == whole.to_json() and again.plan.to_json() == whole.plan.to_json()
    # What was known was not asked for again, but of the generation that was cut short.
    lost = 30 - before["history"][-1]["evaluations"]
    assert 0 < lost <= 17
    assert whole.history[-1].evaluations <= len(calls) <= whole.history[-1].evaluations + lost + 1
    with pytest.raises(aq.FileError, match="of another search"):
        evolve(model, seed=9, **how)
    file.write_text("{}")
    with pytest.raises(aq.FileError, match="not a checkpoint of a search"):
        evolve(model, **how)


# python -m arrowquant


def test_module_searches_as_the_command_line_does(module, cli, model, tmp_path):
    from common import write_safetensors

    source = write_safetensors(tmp_path / "m.safetensors", model)
    command = (
        f"{sys.executable} -c 'import json, sys; plan = json.load(open(sys.argv[1]));"
        f' print("worth", sum(len(plan["tensors"]) * t["bytes"] for t in plan["tensors"][:2]))\' {{}}'
    )
    flags = ["--candidates", "int2:32,int4:32,int8:32", "--avg-bits", "6.2", "--min-cosine", "none"]
    flags += ["--population", "4", "--generations", "1", "--fitness", command]
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    found = json.loads(module("evolve", source, ours, *flags, "--json").stdout)
    assert found == json.loads(cli("evolve", source, theirs, *flags, "--json").stdout)
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
    plan = aq.Plan.from_json(ours.read_text())
    assert found["fitness"] == 7 * sum(plan[name].bytes for name in NAMES[:2])
    module("quantize", source, tmp_path / "m.parquet", "--plan", ours, "--quiet")
    checkpoint = tmp_path / "search.json"
    text = module("evolve", source, ours, *flags[:-2], "--checkpoint", checkpoint).stdout
    assert "generation" in text and "errors of tensors add up" in text and checkpoint.exists()

    for args, code, message in [
        ([source, source], 2, "is the input"),
        ([source, tmp_path / "none" / "plan.json"], 2, "there is no folder"),
        ([source, tmp_path / "p.json", "--resume"], 2, "--resume needs --checkpoint"),
        ([source, tmp_path / "p.json", "--population", "1"], 2, "population"),
        ([source, tmp_path / "p.json", "--fitness", "exit 3"], 2, "failed: exit status 3"),
        ([source, tmp_path / "p.json", "--fitness", "echo none"], 2, "printed no number"),
    ]:
        done = module("evolve", *args, check=False)
        assert done.returncode == code and message in done.stderr, (args, done.stderr)
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "p.json").exists()

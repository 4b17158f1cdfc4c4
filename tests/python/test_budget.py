"""Budgets, sensitivities, and the ladder: the promises of settings, checked with numpy and files."""

import json
import os
import re
import signal

import numpy as np
import pytest

import arrowquant as aq
from common import BITS, cosine, noise

NAMES = [f"layers.{i}.weight" for i in range(6)]


@pytest.fixture(scope="module")
def model():
    """Makes matrices of different sizes and tails."""
    random = np.random.default_rng(5)
    tensors = {}
    for i, name in enumerate(NAMES):
        rows, cols = 128 + 64 * (i % 3), 256 + 32 * i
        tails = random.standard_t(2 + i, size=(rows, cols)) * 0.05
        tensors[name] = np.clip(tails, -3, 3).astype("<f4")
    tensors["layers.0.norm.weight"] = noise(9, 64)
    return tensors


def plane_bytes(entry, shape):
    """Returns bytes by the format's description: rows of codes starting at a byte, an f16 per group, two if affine."""
    rows, cols = shape
    if entry.format == "kept":
        return rows * cols * 4
    groups = -(-cols // (entry.group_size or cols))
    scales = groups * (4 if entry.scheme == "affine" else 2)
    return rows * (-(-cols * BITS[entry.format] // 8) + scales)


@pytest.mark.parametrize("bits", [2.5, 3, 4.2])
def test_avg_bits_are_those_of_the_planes(bits, model):
    plan = aq.Plan.create(model, avg_bits=bits, min_cosine=None)
    sizes = [plane_bytes(plan[name], model[name].shape) for name in NAMES]
    assert sizes == [plan[name].bytes for name in NAMES]
    weights = sum(model[name].size for name in NAMES)
    # No way to store any tensor is much cheaper than another: most of the budget is spent.
    assert 0.97 * bits < 8 * sum(sizes) / weights <= bits
    assert all(plan[name].reason.startswith("budget: ") for name in NAMES)
    assert len({(plan[name].format, plan[name].group_size) for name in NAMES}) > 1
    assert plan["layers.0.norm.weight"].format == "kept"


def test_candidates_are_what_is_chosen_from(model):
    wanted = ["int2:64:affine", "int8:32"]
    plan = aq.Plan.create(model, avg_bits=5, candidates=wanted, min_cosine=None)
    found = {(plan[name].format, plan[name].group_size, plan[name].scheme) for name in NAMES}
    assert found == {("int2", 64, "affine"), ("int8", 32, "symmetric")}


@pytest.mark.parametrize("size", ["200kB", 260_000])
def test_max_size_is_obeyed_by_the_file(size, model, tmp_path):
    output = tmp_path / "m.parquet"
    limit = 200_000 if size == "200kB" else size
    plan = aq.Plan.create(model, max_size=size, min_cosine=None)
    predicted = plan.file_bytes(model)
    report = plan.run(model, output)
    found = output.stat().st_size
    assert found == report.totals.output_bytes and 0.97 * limit < found <= limit
    assert abs(predicted - found) < 0.01 * found
    # In one call, the same.
    aq.quantize(model, tmp_path / "same.parquet", max_size=size, min_cosine=None)
    assert (tmp_path / "same.parquet").read_bytes() == output.read_bytes()


def test_an_impossible_budget_is_refused_with_the_arithmetic(model):
    weights = sum(model[name].size for name in NAMES)
    with pytest.raises(aq.ConfigError, match="max_size: 10.0 kB is too small") as refused:
        aq.Plan.create(model, max_size="10kB")
    assert f"{weights} weights to quantize" in str(refused.value)
    with pytest.raises(aq.ConfigError, match="avg_bits: 1.5 bits is too small"):
        aq.quantize_to_bytes(model, avg_bits=1.5)


def test_file_bytes_are_of_the_plans_own_source(model):
    plan = aq.Plan.create(model)
    with pytest.raises(aq.PlanError, match="but the source has 'a'"):
        plan.file_bytes({"a": noise(1, 4, 32)})


def test_mixed_precision_takes_the_fewest_bits_that_reach_the_cosine(model, tmp_path):
    output = tmp_path / "m.parquet"
    report = aq.quantize(model, output, mixed_precision=True, min_cosine=0.97)
    with aq.open(output) as opened:
        for name in NAMES:
            assert cosine(opened[name].dequantize(), model[name]) >= 0.97, name
    uniform = aq.quantize(model, tmp_path / "u.parquet", bits=4, min_cosine=0.97)
    assert report.totals.output_bytes < uniform.totals.output_bytes


# The ladder


def measured(model, name, **settings):
    """Returns the result of numpy for one tensor quantized like this."""
    data, _ = aq.quantize_to_bytes({name: model[name]}, min_cosine=None, **settings)
    with aq.open(data) as opened:
        return cosine(opened[name].dequantize(), model[name])


def test_fail_fast_names_tensor_value_and_threshold(model, tmp_path):
    threshold = 0.96
    values = {name: measured(model, name, bits=2) for name in NAMES}
    first = next(name for name in NAMES if values[name] < threshold)
    settings = {"bits": 2, "min_cosine": threshold, "fail_fast": True}
    with pytest.raises(aq.TensorError) as failed:
        aq.quantize(model, tmp_path / "m.parquet", **settings)
    found = re.search(r"'(.*)': cosine is ([\d.]+) at int2, below min_cosine ([\d.]+)", str(failed.value))
    assert found[1] == first and abs(float(found[2]) - values[first]) < 1e-4
    assert float(found[3]) == threshold and list(tmp_path.iterdir()) == []


def test_the_ladder_gives_more_bits_and_says_so(model, tmp_path):
    # One tensor is to be better than two and four bits are.
    settings = {"bits": 2, "min_cosine": 0.9, "rules": [f"{NAMES[5]}=min_cosine:0.999"]}
    assert measured(model, NAMES[5], bits=4) < 0.999 < measured(model, NAMES[5], bits=8)
    plan = aq.Plan.create(model, **settings)
    wanted = {name: 0.999 if name == NAMES[5] else 0.9 for name in NAMES}
    assert {name: plan[name].min_cosine for name in NAMES} == wanted
    report = aq.quantize(model, tmp_path / "m.parquet", **settings)
    for name in NAMES:
        tried = [bits for bits in (2, 4, 8) if measured(model, name, bits=bits) < wanted[name]]
        entry = report[name]
        assert [step.format for step in entry.ladder] == [f"int{bits}" for bits in tried]
        for bits, step in zip(tried, entry.ladder):
            assert abs(step.cosine - measured(model, name, bits=bits)) < 1e-6
            assert (step.min_cosine, step.measure, step.spatial) == (wanted[name], "weight", False)
        assert entry.min_cosine == wanted[name] and entry.cosine >= wanted[name]
        assert entry.below_min_cosine is False
    assert len(report[NAMES[5]].ladder) == 2 and report[NAMES[5]].format == "int8"
    norm = report["layers.0.norm.weight"]
    assert norm.ladder == () and norm.min_cosine is None


def test_what_has_no_room_for_more_bits_says_so(model):
    settings = {"candidates": "int2:32", "min_cosine": 0.99}
    size = aq.Plan.create(model, mixed_precision=True, **settings).file_bytes(model)
    plan, logged = None, []
    while plan is None:
        # The smallest that is possible: a little more than predicted.
        size += 100
        try:
            plan = aq.Plan.create(model, max_size=size, **settings)
        except aq.ConfigError as refused:
            assert "max_size" in str(refused)
    data, report = plan.run_to_bytes(model, log=lambda level, text: logged.append(text))
    assert len(data) <= size
    for name in NAMES:
        entry = report[name]
        assert entry.format == "int2" and entry.below_min_cosine and entry.ladder == ()
        assert any(f"'{name}'" in text and "no room" in text for text in logged)


# Settings


def test_settings_have_python_values():
    config = aq.Config()
    assert config["min_cosine"] == 0.85 and config["avg_bits"] == "none"
    assert config["mixed_precision"] is False and config["seed"] == 0
    assert (config["max_size"], config["candidates"]) == ("none", "auto")
    config.update(min_cosine=None, avg_bits=3.5, max_size=2_000_000_000, seed=7)
    config["candidates"] = ["int2:256", "int4:128:affine", "keep"]
    assert config["min_cosine"] == "none" and config["avg_bits"] == 3.5 and config["seed"] == 7
    assert config["max_size"] == "2000000000B" and config["mixed_precision"] is True
    assert config["candidates"] == "int2:256,int4:128:affine,keep"
    again = aq.Config.from_yaml(config.to_yaml())
    assert dict(again.items()) == dict(config.items())
    config.update(avg_bits=None, max_size=None)
    assert config["mixed_precision"] is False
    for key, value in [("min_cosine", 2), ("avg_bits", 0), ("max_size", "much"), ("seed", -1),
                       ("candidates", "int3"), ("mixed_precision", "maybe")]:
        with pytest.raises(aq.ConfigError, match=key):
            config[key] = value


# Measuring tells how far it has come


def test_progress_of_planning_is_told_and_may_end_it(model, tmp_path):
    told = []
    aq.Plan.create(model, avg_bits=4, progress=lambda *now: told.append(now), threads=1)
    assert len(told) > 2 and told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    for call in [
        lambda **how: aq.Plan.create(model, avg_bits=4, **how),
        lambda **how: aq.analyze(model, **how),
        lambda **how: aq.evolve(model, **how),
        lambda **how: aq.quantize(model, tmp_path / "m.parquet", avg_bits=4, **how),
    ]:
        with pytest.raises(Stop):
            call(progress=stop)
        with pytest.raises(aq.Cancelled):
            call(progress=lambda *_: False)
    # Without a budget there is nothing to tell.
    aq.Plan.create(model, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_planning(model):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        aq.Plan.create(model, avg_bits=4, progress=interrupt)


# Analyses


def test_an_analysis_is_near_what_whole_tensors_lose(model):
    found = aq.analyze(model, candidates=["int2:32", "int4:128", "keep"], bits=8, group_size=64)
    assert [tensor.name for tensor in found] == NAMES and len(found) == 6
    assert found.to_dict() == json.loads(found.to_json()) and found.seconds > 0
    for tensor in found:
        rows, cols = model[tensor.name].shape
        assert tensor.shape == (rows, cols) and tensor.weights == rows * cols
        assert tensor.basis == "weights" and 4 <= tensor.sampled_rows < rows
        # The settings' own format comes last.
        formats = [(format.format, format.group_size) for format in tensor.formats]
        assert formats == [("int2", 32), ("int4", 128), ("keep", None), ("int8", 64)]
        for format in tensor.formats:
            assert format.bits_per_weight == format.bytes * 8 / tensor.weights
            assert abs(format.error - (1 - format.cosine**2)) < 1e-12
        keep = tensor.formats[2]
        assert (keep.cosine, keep.scheme, keep.bytes) == (1, None, rows * cols * 4)
        for bits, format in [(2, tensor.formats[0]), (4, tensor.formats[1]), (8, tensor.formats[3])]:
            whole = measured(model, tensor.name, bits=bits, group_size=format.group_size)
            # A few rows have other tails than all.
            assert abs(format.error - (1 - whole**2)) < 0.5 * (1 - whole**2), (tensor.name, bits)
    assert found[NAMES[1]] is found[1]
    with pytest.raises(KeyError):
        found["none"]


def test_sensitive_tensors_are_found(model):
    # None of them reaches that at two bits.
    found = aq.analyze(model, bits=2, min_cosine=0.995)
    assert [tensor.name for tensor in found.sensitive] == NAMES
    assert all("below min_cosine 0.995" in tensor.sensitive for tensor in found)
    # At eight all do, and a tenth of six are one.
    assert len(aq.analyze(model, bits=8, min_cosine=0.9).sensitive) == 1


def test_the_same_seed_samples_the_same_rows(model):
    def figures(**settings):
        found = aq.analyze(model, candidates="int2:32", **settings).to_dict()
        return found["tensors"]

    assert figures(seed=3, threads=1) == figures(seed=3, threads=2)
    assert figures(seed=3) != figures(seed=4)


# python -m arrowquant


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    from common import write_safetensors

    return write_safetensors(tmp_path_factory.mktemp("saved") / "m.safetensors", model)


def test_module_takes_budgets_as_the_command_line_does(module, cli, saved, tmp_path):
    for flags in [
        ["--avg-bits", "3.2", "--min-cosine", "none", "--seed", "5"],
        ["--max-size", "300kB", "--candidates", "int2:32,int4:32,int8:64"],
        ["--mixed", "--min-cosine", "0.95"],
    ]:
        args = ["plan", saved, *flags, "--json"]
        ours, theirs = json.loads(module(*args).stdout), json.loads(cli(*args).stdout)
        assert ours == theirs and ours["tensors"], flags
    text = module("plan", saved, "--max-size", "300kB").stdout
    assert re.search(r"a file of 29\d{4} bytes", text) or re.search(r"a file of 30\d{4} bytes", text)
    done = module("plan", saved, "--max-size", "1kB", check=False)
    assert done.returncode == 2 and "error: --max-size: 1.0 kB is too small" in done.stderr or (
        "error: max_size: 1.0 kB is too small" in done.stderr
    )
    output = tmp_path / "m.parquet"
    done = module("quantize", saved, output, "--bits", "2", "--min-cosine", "0.98")
    assert "ladder: 6 tensors got more than planned" in done.stdout


def test_module_analyzes_as_the_command_line_does(module, cli, saved):
    args = ["analyze", saved, "--seed", "2", "--bits", "4", "--json"]
    ours, theirs = json.loads(module(*args).stdout), json.loads(cli(*args).stdout)
    assert ours.pop("seconds") > 0 and theirs.pop("seconds") > 0
    assert ours == theirs and len(ours["tensors"]) == 6
    table = module("analyze", saved, "--bits", "4").stdout
    assert re.search(r"tensor +shape +rows +cosine of +int2 g128 +int4 g128 +int8 g128 +sens", table) or (
        re.search(r"tensor +shape +rows +cosine of +int4 g128 +sens", table)
    )
    assert re.search(r"layers\.0\.weight +128x256 +\d+ +weights +0\.\d{5}", table)

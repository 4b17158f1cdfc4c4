"""Nothing is freed while it is in use, and everything once when it is not."""

import gc
import os
import shutil
import sys
import threading
import weakref

import numpy as np
import pytest

import arrowquant as aq
from arrowquant._library import lib
from common import address, noise

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def freed(monkeypatch):
    """The pointers given to the `_free` functions, by kind."""
    told = {}
    for kind in ("config", "source", "plan", "report", "model", "verification", "calibration"):
        pointers = told[kind] = []

        def free(pointer, original=getattr(lib, f"aq_{kind}_free"), pointers=pointers):
            pointers.append(pointer)
            original(pointer)

        monkeypatch.setattr(lib, f"aq_{kind}_free", free)
    return told


def mapped(path):
    with open("/proc/self/maps") as file:
        return os.fspath(path) in file.read()


@pytest.fixture
def own(packed, tmp_path):
    """A file that only this test has open."""
    return shutil.copy(packed, tmp_path / "own.parquet")


NAME = "blocks.0.attn.qkv.weight"


def test_views_outlive_the_model(own, freed):
    with aq.open(own) as model:
        wanted = model[NAME].dequantize()
        (tile,) = model[NAME].tiles
        codes, scales = np.asarray(tile.codes), tile.numpy().scales
        inside = tile.codes.cast("B")[100:200]
    del model, tile
    gc.collect()
    assert freed["model"] == []
    z = codes.astype(int)
    q = np.stack([z & 15, z >> 4], axis=2).reshape(48, 200) - 8
    y = np.repeat(scales.astype("<f4"), 64, axis=1)[:, :200] * q.astype("<f4")
    assert y.tobytes() == wanted.tobytes()
    del codes, scales
    gc.collect()
    assert freed["model"] == [] and inside.tobytes() == z.astype("u1").tobytes()[100:200]
    del inside
    gc.collect()
    assert len(freed["model"]) == 1


@linux
def test_the_file_is_unmapped_after_the_last_view(own):
    model = aq.open(own)
    assert mapped(own)
    tensor = model[NAME]
    model.close()
    array = np.asarray(tensor.tiles[0].codes)
    del model, tensor
    gc.collect()
    assert mapped(own)
    part = array[3:5]
    del array
    gc.collect()
    assert mapped(own) and part.any()
    del part
    gc.collect()
    assert not mapped(own)


def test_tensors_outlive_the_model(own, freed):
    model = aq.open(own)
    wanted = model[NAME].dequantize()
    tensor = model[NAME]
    model.close()
    model.close()
    del model
    gc.collect()
    assert (tensor.dequantize() == wanted).all() and tensor.tiles[0].rows == 48
    assert freed["model"] == []
    del tensor
    gc.collect()
    assert len(freed["model"]) == 1


def test_a_closed_model_says_so(packed):
    model = aq.open(packed)
    model.close()
    for use in [
        lambda: model[NAME], lambda: len(model), lambda: list(model), lambda: model.verify(),
        lambda: model.metadata, lambda: model.__arrow_c_stream__(), lambda: model.__enter__(),
    ]:
        with pytest.raises(aq.ArgumentError, match="the Model is closed"):
            use()
    assert "closed" in repr(model)


def test_closed_things_say_so(small):
    source, config = aq.Source.open(small), aq.Config()
    plan = aq.Plan.create(source, config)
    for thing in (source, config, plan):
        with thing:
            assert not thing.closed
        assert thing.closed and "closed" in repr(thing)
    for use in [lambda: len(source), lambda: config["bits"], lambda: plan.to_json()]:
        with pytest.raises(aq.ArgumentError, match="is closed"):
            use()


def test_unpacked_planes_of_compressed_files_outlive_the_model(small):
    file, _ = aq.quantize_to_bytes(small, compression="zstd")
    model = aq.open(file)
    wanted = bytes(model[NAME].tiles[0].codes)
    first, second = model[NAME].tiles[0].codes, model[NAME].tiles[0].codes
    assert address(first) == address(second)
    model.close()
    del model, file
    gc.collect()
    assert bytes(first) == wanted


class Bytes(bytearray):
    """A bytearray that can be watched."""


def test_a_model_keeps_the_memory_it_was_opened_in(packed):
    data = Bytes(packed.read_bytes())
    watch = weakref.ref(data)
    model = aq.open(data)
    with pytest.raises(BufferError):
        data.clear()
    view = model[NAME].tiles[0].codes
    wanted = view.tobytes()
    model.close()
    del data, model
    gc.collect()
    assert watch() is not None and view.tobytes() == wanted
    del view
    gc.collect()
    assert watch() is None


def test_a_source_keeps_its_arrays(small):
    arrays = {f"{i}.weight": Bytes(noise(i, 8, 32).tobytes()) for i in range(3)}
    watches = [weakref.ref(a) for a in arrays.values()]
    source = aq.Source()
    for name, data in arrays.items():
        source.add_tensor(name, data, dtype="f32", shape=(8, 32))
    wanted, _ = aq.quantize_to_bytes({f"{i}.weight": noise(i, 8, 32) for i in range(3)})
    del arrays, data
    gc.collect()
    assert all(watch() is not None for watch in watches)
    assert aq.quantize_to_bytes(source)[0] == wanted
    source.close()
    gc.collect()
    assert all(watch() is None for watch in watches)


def test_a_tensor_that_is_refused_is_not_kept():
    data = Bytes(16)
    watch = weakref.ref(data)
    source = aq.Source()
    with pytest.raises(aq.TensorError):
        source.add_tensor("w", data, dtype="f32", shape=(5,))
    del data
    gc.collect()
    assert watch() is None and len(source) == 0


def test_every_handle_is_freed_once(own, small, freed, tmp_path):
    with aq.Source.open(small) as source:
        with aq.Config("edge") as config, aq.Plan.create(source, config) as plan:
            plan.run(source, tmp_path / "a.parquet")
            plan.run_to_bytes(source)
            aq.Plan.from_json(plan.to_json())
            config.copy()
    aq.quantize(small, tmp_path / "b.parquet", bits=2)
    aq.quantize({"w": noise(1, 4, 16)}, tmp_path / "c.parquet")
    with aq.open(own) as model:
        model.verify(small)
    del source, config, plan, model
    gc.collect()
    # Configs: ours, its copy, and one for each call of quantize. No pointer comes twice but by
    # chance, and what was freed twice would be refused silently: so they are counted.
    counts = {kind: len(pointers) for kind, pointers in freed.items()}
    assert counts == {
        "config": 4, "source": 3, "plan": 3, "report": 4, "model": 1, "verification": 1,
        "calibration": 0,
    }


def test_a_failed_call_frees_what_it_made(freed, tmp_path):
    with pytest.raises(aq.TensorError):
        aq.quantize({"w": np.full((4, 16), np.nan, "<f4")}, tmp_path / "m.parquet")
    with pytest.raises(aq.ConfigError):
        aq.Config(bits=3)
    gc.collect()
    assert {kind: len(pointers) for kind, pointers in freed.items() if pointers} == {
        "config": 2, "source": 1, "plan": 1,
    }


def test_what_is_left_at_the_end_does_no_harm(python, own, small):
    text = """
import atexit, sys
def last():
    # After the package's own end, whatever that does.
    assert view.tobytes() == wanted and tensor.dequantize().any()
atexit.register(last)
import arrowquant, numpy as np
own, small = sys.argv[1:]
model = arrowquant.open(own)
tensor = model["blocks.0.attn.qkv.weight"]
view = tensor.tiles[0].codes
wanted = view.tobytes()
array = np.asarray(view)
capsule = model.__arrow_c_stream__()
source = arrowquant.Source.open(small)
plan = arrowquant.Plan.create(source)
config = arrowquant.Config()
import pyarrow
table = pyarrow.table(model)
# Cycles, which are collected at the very end.
loop = [model, tensor, view, capsule, table, source, plan]; loop.append(loop)
sys.modules["keep"] = loop
print("done")
"""
    done = python(text, own, small)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_models_are_used_by_many_threads(big_packed):
    model = aq.open(big_packed)
    names = [name for name, tensor in model.items() if tensor.tiles[0].recipe]
    wanted = {name: model[name].dequantize().tobytes() for name in names}
    wrong = []
    started = threading.Barrier(4)

    def work(first):
        started.wait()
        for name in names[first:] + names[:first]:
            if model[name].dequantize().tobytes() != wanted[name] or not model[name].tiles[0].cosine:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=[5 * i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(names) == 20


def test_a_config_is_changed_by_one_thread_at_a_time():
    config = aq.Config()
    wrong = []

    def work(number):
        for _ in range(200):
            config["bits"] = 2 * number
            if config["bits"] not in (2, 4, 8) or "bit_width" not in config.to_yaml():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in (1, 2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_callback_cannot_change_the_plan_that_is_run(small, tmp_path):
    plan = aq.Plan.create(small)
    told = []

    def progress(done, total):
        told.append(len(plan))
        plan.set(NAME, "keep")

    with pytest.raises(aq.ArgumentError, match="a callback cannot change"):
        plan.run(small, tmp_path / "m.parquet", progress=progress)
    assert told == [7] and plan[NAME].format == "int4"
    plan.set(NAME, "keep")
    assert plan[NAME].format == "kept"


def test_a_callback_may_call_the_library(small, tmp_path):
    inner = []

    def progress(done, total):
        if not inner:
            inner.append(aq.quantize_to_bytes(small, bits=2)[0])

    aq.quantize(small, tmp_path / "m.parquet", progress=progress)
    assert inner == [aq.quantize_to_bytes(small, bits=2)[0]]

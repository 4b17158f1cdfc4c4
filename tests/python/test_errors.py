"""Every kind of error, by name; and runs that end early leave nothing behind."""

import errno
import logging
import os
import pathlib
import pickle
import signal
import threading

import numpy as np
import pytest

import arrowquant as aq
from arrowquant import errors
from common import noise, write_safetensors

NAME = "blocks.0.attn.qkv.weight"


def raises(kind, *parts):
    """Expects this exception, with these words in its message."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(_escape, parts)))


def _escape(part):
    import re

    return re.escape(os.fspath(part))


# Kinds


@pytest.mark.parametrize(
    "kind, bases, code",
    [
        (aq.ConfigError, [ValueError], 1), (aq.UnknownKey, [aq.ConfigError, KeyError], 1),
        (aq.IOFailure, [OSError], 2), (aq.MissingFile, [aq.IOFailure, FileNotFoundError], 2),
        (aq.FileError, [ValueError], 3), (aq.TensorError, [ValueError], 4),
        (aq.UnknownTensor, [aq.TensorError, KeyError], 4), (aq.PlanError, [ValueError], 5),
        (aq.ChecksumError, [], 6), (aq.Cancelled, [], 7), (aq.InternalError, [RuntimeError], 8),
        (aq.ArgumentError, [ValueError], 9),
    ],
)
def test_kinds_have_codes_bases_and_messages(kind, bases, code):
    error = kind("what happened")
    assert all(isinstance(error, base) for base in [aq.Error, Exception, *bases])
    assert (error.code, str(error), error.message) == (code, "what happened", "what happened")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error)


def test_a_kind_from_a_newer_library_is_an_error_with_its_code():
    error = aq.errors.of_status(77, "new")
    assert type(error) is aq.Error and error.code == 77 and aq.Error.code == 0


def test_config_errors(small, tmp_path):
    with raises(aq.ConfigError, "bit_width", "invalid value '3' (expected 2, 4 or 8)"):
        aq.quantize(small, tmp_path / "m.parquet", bits=3)
    with raises(aq.ConfigError, "bit_with", "unknown key (expected one of: deployment_profile"):
        aq.Config(bit_with=4)
    with raises(aq.ConfigError, "moon"):
        aq.Config("moon")
    with raises(aq.UnknownKey, "nonsense"):
        aq.Config()["nonsense"]
    with raises(aq.ConfigError, "'m.bin' does not end in .parquet"):
        aq.quantize(small, "m.bin")
    with raises(aq.ConfigError, "no pattern"):
        aq.Config(rules=[{"bits": 2}])
    file = tmp_path / "settings.yaml"
    file.write_text("scheme: odd")
    with raises(aq.ConfigError, file, "odd"):
        aq.Config.from_yaml_file(file)
    config = aq.Config(bits=2)
    with raises(aq.ConfigError, "YAML"):
        config.merge_yaml("- 1")
    assert config["bits"] == 2 and config.copy()["bits"] == 2


def test_environment_errors(monkeypatch):
    monkeypatch.setenv("AQ_BITS", "4")
    with raises(aq.ConfigError, "AQ_BITS", "unknown key"):
        aq.Config.from_env()


def test_io_errors(tmp_path, small):
    for use in [
        lambda path: aq.quantize(path, tmp_path / "m.parquet"),
        aq.Source.open, aq.open, aq.Config.from_yaml_file,
    ]:
        missing = tmp_path / "none"
        with raises(aq.MissingFile, missing, "No such file") as caught:
            use(missing)
        assert caught.value.errno == errno.ENOENT
    inside = small / "x"
    with raises(aq.IOFailure, inside) as caught:
        aq.open(inside)
    assert caught.value.errno == errno.ENOTDIR and not isinstance(caught.value, aq.MissingFile)


def test_file_errors(small, packed, tmp_path):
    with raises(aq.FileError, small, "not a Parquet file"):
        aq.open(small)
    with raises(aq.FileError, "(memory)", "not a Parquet file"):
        aq.open(b"nothing of use")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(small.read_bytes()[:-100])
    with raises(aq.Error, cut):
        aq.quantize(cut, tmp_path / "m.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(packed.read_bytes()[:-100])
    with raises(aq.FileError, cut):
        aq.open(cut)
    with raises(aq.FileError, "there is no folder"):
        aq.quantize(small, tmp_path / "none" / "m.parquet")
    same, link = tmp_path / "same.safetensors", tmp_path / "link.parquet"
    same.write_bytes(small.read_bytes())
    link.symlink_to(same)
    with raises(aq.FileError, "would be overwritten"):
        aq.quantize(same, link)


def test_tensor_errors(small, packed, tmp_path):
    bad = noise(1, 4, 32)
    bad[2, 5] = np.inf
    path = write_safetensors(tmp_path / "bad.safetensors", {"good.weight": noise(2, 4, 32), "bad.weight": bad})
    with raises(aq.TensorError, path, "tensor 'bad.weight'"):
        aq.quantize(path, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()
    with raises(aq.TensorError, small, "position_ids"):
        aq.quantize(small, tmp_path / "m.parquet", rules=["position_ids=bits:4"])
    with raises(aq.TensorError, "row 2, column 5 is inf"):
        aq.kernels.quantize_rows(bad)
    with raises(aq.TensorError, "row 0", "scale dtype"):
        aq.kernels.quantize_rows(np.full((1, 16), 1e30, "<f4"))
    with raises(aq.UnknownTensor, "nothing"):
        aq.open(packed)["nothing"]
    with raises(aq.Error, "position_ids"):
        aq.open(packed)["position_ids"].dequantize()
    with raises(aq.TensorError, "position_ids", "not quantized"):
        aq.open(packed)["position_ids"].matvec(noise(1, 12))
    source = aq.Source()
    source.add_tensor("w", noise(1, 2, 2))
    with raises(aq.TensorError, "'w'", "added twice"):
        source.add_tensor("w", noise(1, 2, 2))
    with raises(aq.TensorError, "'v'", "16 bytes do not match shape"):
        source.add_tensor("v", noise(1, 2, 2), shape=(3, 2))


def test_plan_errors(small, dit):
    plan = aq.Plan.create(small)
    with raises(aq.PlanError, "has no tensor 'nothing'"):
        plan.set("nothing", "keep")
    with raises(aq.ConfigError, NAME, "3"):
        plan.set(NAME, "bits:3")
    with raises(aq.PlanError, "has tensor"):
        plan.run_to_bytes(dit)
    with raises(aq.PlanError, "line 1"):
        aq.Plan.from_json("{")
    with raises(aq.PlanError, "version 9"):
        aq.Plan.from_json(plan.to_json().replace('"arrowquant_plan":1', '"arrowquant_plan":9'))
    with raises(TypeError, "Plan.create"):
        aq.Plan()


@pytest.fixture
def damaged(packed, tmp_path):
    """Makes a file with one flipped bit in a tensor's codes."""
    with aq.open(packed) as model:
        codes = bytes(model[NAME].tiles[0].codes)
    data = bytearray(packed.read_bytes())
    data[data.index(codes) + 7] ^= 1
    path = tmp_path / "damaged.parquet"
    path.write_bytes(data)
    return path


def test_checksum_errors(damaged, tmp_path):
    model = aq.open(damaged)
    output = tmp_path / "back.safetensors"
    with raises(aq.ChecksumError, damaged, NAME, "checksum does not match"):
        model.dequantize(output)
    assert not output.exists()
    found = model.verify()
    assert [check.name for check in found.failures] == [NAME] and not found.ok
    assert "checksum" in found.failures[0].problem


def test_internal_errors():
    # The library has no function that fails inside: what it would return.
    error = errors.of_status(8, "internal error: a test at src/capi/guard.rs:1:1")
    assert type(error) is aq.InternalError and isinstance(error, RuntimeError) and "a test" in str(error)


def test_kept_tensors_are_not_multiplied(packed):
    model = aq.open(packed)
    x = noise(1, 64).ravel()
    for use, parts in [
        (lambda: aq.kernels.dequantize_rows(model["position_ids"]), ["f32, f16 and bf16 only"]),
        (lambda: aq.kernels.matvec(model["blocks.0.norm.weight"], x), ["kept, not quantized"]),
        (lambda: aq.kernels.quantize_vectors(model["blocks.0.norm.weight"], x), ["kept, not quantized"]),
    ]:
        with raises(aq.TensorError, *parts):
            use()
    with raises(TypeError, "a Matrix, or a tensor or tile of a model, is needed, not int"):
        aq.kernels.matvec(7, x)


def test_argument_errors(packed, small):
    w = noise(1, 4, 32)
    q = aq.kernels.quantize_rows(w)
    wide, narrow = aq.kernels.quantize_rows(w, bits=8, group_size=16), aq.kernels.quantize_rows(w[:, :16].copy())
    tensor = aq.open(packed)[NAME]
    for use, parts in [
        (lambda: aq.kernels.quantize_rows(w[:, ::2]), ["weights is not C-contiguous"]),
        (lambda: aq.kernels.quantize_rows(w.T), ["weights is not C-contiguous"]),
        (lambda: aq.kernels.quantize_rows(w.ravel()), ["need rows or cols"]),
        (lambda: aq.kernels.quantize_rows(w.ravel(), rows=3), ["weights has length 512"]),
        (lambda: aq.kernels.quantize_rows(w, rows=-1), ["rows: -1"]),
        (lambda: aq.kernels.quantize_rows(w.astype("<f8")), ["invalid value 'f64' (expected f32, f16, bf16)"]),
        (lambda: aq.kernels.quantize_rows(w.astype(">f4")), ["dtype of the weights"]),
        (lambda: aq.kernels.quantize_rows(w, bits=3), ["format", "'int3'"]),
        (lambda: aq.kernels.quantize_rows(w, bits=4, format="int8"), ["contradict"]),
        (lambda: aq.kernels.quantize_rows(w, group_size=17), ["group_size is 17"]),
        (lambda: aq.kernels.quantize_rows(w, group_size=-1), ["group_size"]),
        (lambda: aq.kernels.quantize_rows(w, scheme="odd"), ["scheme", "symmetric, affine"]),
        (lambda: aq.kernels.quantize_rows(w, method="best"), ["method", "minmax, lsq"]),
        (lambda: aq.kernels.quantize_rows(w, importance=w[0, :5]), ["importance has 5"]),
        (lambda: aq.kernels.quantize_rows(w, importance=-w[0] ** 2), ["importance"]),
        (lambda: aq.kernels.quantize_rows(w, importance=w[0].astype("<f8")), ["importance must be f32"]),
        (lambda: aq.kernels.quantize_rows(w, out=[bytes(64), bytearray(8), None]), ["codes is read-only"]),
        (lambda: aq.kernels.quantize_rows(w, out=[bytearray(63), bytearray(8), None]), ["codes has length 63, expected 64"]),
        (lambda: aq.kernels.quantize_rows(w, out=[bytearray(64)]), ["codes, scales and biases"]),
        (lambda: aq.kernels.dequantize_rows(q, dtype="f64"), ["'f64'"]),
        (lambda: aq.kernels.dequantize_rows(q, out=bytearray(5)), ["out has 5 bytes, expected 512"]),
        (lambda: aq.kernels.dequantize_rows(q, out=bytes(512)), ["out is read-only"]),
        (lambda: aq.kernels.matvec(q, w[0].astype("<f8")), ["x must be f32"]),
        (lambda: aq.kernels.matvec(q, w[0, :5].copy()), ["x has shape (5,)", "32 columns"]),
        (lambda: aq.kernels.matvec(q, noise(1, 2, 5)), ["vectors of 5", "32 columns"]),
        (lambda: tensor.matvec(w[0]), ["200 columns"]),
        (lambda: aq.kernels.quantize_vectors(q, w[0].astype("<f8")), ["x must be f32"]),
        (lambda: aq.kernels.quantize_vectors(q, noise(1, 2, 5)), ["vectors of 5", "32 columns"]),
        (lambda: aq.kernels.quantize_vectors(q, w * np.float32("nan")), ["x has a NaN"]),
        (lambda: aq.kernels.matvec_int8(q, aq.kernels.quantize_vectors(wide, w)), ["another format, group size or cols"]),
        (lambda: aq.kernels.matvec_int8(q, aq.kernels.quantize_vectors(narrow, w[:, :16].copy())), ["another format, group size or cols"]),
        (lambda: aq.kernels.compare(w, w[0]), ["b has length 128, expected 512"]),
        (lambda: aq.kernels.compare(w, w.view("<u2")), ["dtype of b", "'u16'"]),
        (lambda: aq.kernels.compare(w * np.float32("inf"), w), ["a or b has a NaN or an infinity"]),
        (lambda: tensor.dequantize("f64"), ["'f64'"]),
        (lambda: tensor.dequantize(rows=slice(0, 4, 2)), ["step of 2"]),
        (lambda: aq.kernels.plane_sizes(1 << 62, 1 << 62), ["larger than any memory"]),
        (lambda: aq.Source().add_tensor("w", w[:, ::2]), ["tensor 'w' is not C-contiguous"]),
        (lambda: aq.Source().add_tensor("w", w, dtype="f33"), ["'w'", "'f33'"]),
        (lambda: aq.Source().add_tensor("w", w, dtype="bf16"), ["'w'", "give a shape"]),
        (lambda: aq.Source().add_tensor("w", w.astype(">f4")), ["'w'", "give one"]),
        (lambda: aq.Source().add_tensor("w", w, shape=(-4, 32)), ["negative"]),
        (lambda: aq.Source().add_tensor("a\0b", w), ["name", "NUL"]),
        (lambda: aq.Source.open(small).add_tensor("w", w), ["cannot be added"]),
        (lambda: aq.Source.from_tensors({"w": (w, "f32", 3)}), ["'w'", "(array, dtype)"]),
        (lambda: aq.open("a\0b"), ["path", "NUL"]),
        (lambda: aq.open("\udcff"), ["path", "UTF-8"]),
        (lambda: aq.quantize(small, "m.parquet", threads=-1), ["threads", "-1"]),
    ]:
        with raises(aq.ArgumentError, *parts):
            use()


def test_wrong_types(small, tmp_path):
    for use, parts in [
        (lambda: aq.quantize(7, "m.parquet"), ["a path, a Source, a mapping", "not int"]),
        (lambda: aq.quantize({"w": [1.0]}, "m.parquet"), ["tensor 'w'", "buffer protocol", "list"]),
        (lambda: aq.quantize(small, "m.parquet", config=4), ["config must be", "int"]),
        (lambda: aq.quantize(small, "m.parquet", progress=4), ["progress must be callable"]),
        (lambda: aq.quantize(small, "m.parquet", log="x"), ["log must be callable"]),
        (lambda: aq.open(7), ["the file", "buffer protocol", "int"]),
        (lambda: aq.kernels.quantize_rows([1.0]), ["weights", "list"]),
        (lambda: aq.Source().add_tensor(3, b""), ["name must be a string"]),
    ]:
        with raises(TypeError, *parts):
            use()
    assert not os.path.exists("m.parquet")


# Callbacks


class Stop(Exception):
    pass


class StopHard(BaseException):
    pass


def ways(dit, packed, tmp_path):
    """Long calls that write a file and take callbacks."""
    source = aq.Source.open(dit)
    # Fast, and with something to log.
    settings = {"keep": ["nothing.*"], "bits": 8, "method": "minmax"}
    plan = aq.Plan.create(source, **settings)
    mapping = {f"{i}.weight": noise(i, 32, 64) for i in range(20)}
    output = tmp_path / "out.parquet"
    return {
        "quantize": lambda **how: aq.quantize(dit, output, **settings, **how),
        "mapping": lambda **how: aq.quantize(mapping, output, **settings, **how),
        "plan": lambda **how: plan.run(source, output, **how),
        "bytes": lambda **how: aq.quantize_to_bytes(source, **settings, **how),
        "dequantize": lambda **how: aq.open(packed).dequantize(tmp_path / "out.safetensors", **how),
        "verify": lambda **how: aq.open(packed).verify(dit, **how),
    }


def ending(error, step):
    """Returns a callback that ends the run at its `step`, and its call counter."""
    calls = []

    def callback(*_):
        calls.append(1)
        if len(calls) < step:
            return None if step % 2 else True
        if error is not None:
            raise error
        return False

    return callback, calls


@pytest.mark.parametrize(
    "way, what, threads",
    [("quantize", what, 2) for what in (Stop, StopHard, KeyboardInterrupt)]
    + [
        (way, what, 1)
        for way in ("quantize", "mapping", "plan", "bytes", "dequantize", "verify")
        for what in (Stop, None)
    ],
)
def test_progress_that_ends_a_run_leaves_nothing(way, what, threads, dit, big_packed, tmp_path):
    run = ways(dit, big_packed, tmp_path)[way]
    steps = 0
    while True:
        wanted = what and what("now")
        callback, calls = ending(wanted, steps + 1)
        try:
            run(progress=callback, threads=threads)
        except (Stop, StopHard, KeyboardInterrupt) as error:
            assert error is wanted
        except aq.Cancelled as error:
            assert what is None and str(error) == "cancelled"
        else:
            # The callback was called fewer times than that.
            assert len(calls) <= steps
            break
        # Not called any more after it ended the run, and nothing is there.
        assert len(calls) == steps + 1
        assert list(tmp_path.iterdir()) == []
        steps += 1
    assert steps >= 1


@pytest.mark.parametrize("way", ["quantize", "mapping", "plan", "bytes"])
@pytest.mark.parametrize("what", [Stop, StopHard, None])
def test_a_log_that_ends_a_run_leaves_nothing(way, what, dit, packed, tmp_path):
    wanted = what and what("now")
    callback, calls = ending(wanted, 1)
    with pytest.raises(what or aq.Cancelled) as caught:
        ways(dit, packed, tmp_path)[way](log=callback)
    assert what is None or caught.value is wanted
    assert len(calls) == 1 and list(tmp_path.iterdir()) == []


def test_every_message_of_the_log_may_end_the_run(tmp_path):
    large, bad = np.full((4, 32), 1e30, "<f4"), noise(1, 4, 32)
    bad[0, 0] = np.nan
    tensors = {"large.weight": large, "bad.weight": bad, "good.weight": noise(2, 4, 32)}
    output = tmp_path / "m.parquet"
    settings = {"keep": ["nothing"], "on_nonfinite": "keep", "threads": 1}
    logged = []
    aq.quantize(tensors, output, log=lambda *told: logged.append(told), **settings)
    assert [level for level, _ in logged] == [logging.WARNING, logging.WARNING, logging.INFO]
    for (_, message), part in zip(logged, ["nothing=keep", "'bad.weight'", "'large.weight', tile 0"]):
        assert part in message
    output.unlink()
    for step in range(1, 4):
        error = Stop(step)
        callback, calls = ending(error, step)
        with pytest.raises(Stop) as caught:
            aq.quantize(tensors, output, log=callback, **settings)
        assert caught.value is error and len(calls) == step and list(tmp_path.iterdir()) == []


def test_what_was_at_the_output_stays_when_a_run_ends(dit, tmp_path):
    output = tmp_path / "m.parquet"
    output.write_bytes(b"what was there")
    with pytest.raises(aq.Cancelled):
        aq.quantize(dit, output, progress=lambda *_: False)
    assert output.read_bytes() == b"what was there" and len(list(tmp_path.iterdir())) == 1


def test_errors_in_callbacks_keep_their_traceback_and_cause(dit, tmp_path):
    def callback(done, total):
        try:
            raise KeyError("first")
        except KeyError as error:
            raise Stop("second") from error

    with pytest.raises(Stop) as caught:
        aq.quantize(dit, tmp_path / "m.parquet", progress=callback)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "callback" in [entry.name for entry in caught.traceback]


def test_answers_that_are_not_booleans(small, tmp_path):
    for answer in (None, True, 1, np.True_, "yes"):
        aq.quantize(small, tmp_path / "m.parquet", progress=lambda *_: answer)
    for answer in (False, 0, np.False_):
        with pytest.raises(aq.Cancelled):
            aq.quantize(small, tmp_path / "m.parquet", progress=lambda *_: answer)


# Python says so when it comes on the way into the callback.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to itself")
def test_ctrl_c_ends_a_run_without_callbacks(tmp_path):
    # Large enough to be at work when it comes.
    tensors = {f"{i}.weight": noise(i, 512, 1024) for i in range(24)}
    source = aq.Source.from_tensors(tensors)
    timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
    # A shell that starts us in the background has us ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                aq.quantize(source, tmp_path / "m.parquet", threads=1)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert all(path.name == "m.parquet" for path in tmp_path.iterdir())


# Paths


@pytest.mark.parametrize("name", ["Gewichte äöü", "モデル 重み", "🙂 модель", "a'b\"c%d\\e"])
def test_paths_of_any_script(name, tmp_path, tensors, module):
    folder = tmp_path / name
    folder.mkdir()
    input = write_safetensors(folder / f"{name}.safetensors", tensors)
    output = folder / f"{name}.parquet"
    report = aq.quantize(input, str(output))
    assert report.to_dict()["output"] == str(output)
    with aq.open(output) as model:
        assert model.verify(str(input))
        model.dequantize(folder / f"{name} back.safetensors")
    assert len(list(folder.iterdir())) == 3
    missing = folder / "none.safetensors"
    with raises(aq.MissingFile, missing):
        aq.quantize(missing, output)
    env = {**os.environ, "PYTHONUTF8": "1"}
    assert name in module("quantize", input, output, env=env).stdout


def test_paths_may_be_path_like(small, tmp_path):
    class Like:
        def __fspath__(self):
            return str(small)

    aq.quantize(Like(), pathlib.Path(tmp_path) / "m.parquet")
    assert len(aq.open(tmp_path / "m.parquet")) == len(aq.Source.open(Like()))

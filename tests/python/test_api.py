"""The public API, compared with numpy."""

import array
import inspect
import dataclasses
import json
import logging
import mmap
import os
import re
import sys

import ml_dtypes
import numpy as np
import pytest

import arrowquant as aq
from arrowquant import _library
from common import (
    BITS,
    cosine,
    decode_tile,
    from_bf16,
    minmax,
    noise,
    read_safetensors,
    round_to_bf16,
    sqnr_db,
    to_bf16,
    unpack,
    write_safetensors,
)


def exact(tensors, name):
    """A tensor's values in f32."""
    dtype, data = tensors[name]
    return from_bf16(data) if dtype == "BF16" else data.astype("<f4")


QUANTIZED = ["blocks.0.attn.qkv.weight", "blocks.0.mlp.weight", "blocks.0.conv.weight"]


# The package


def test_version_is_that_of_the_crate(root):
    manifest = (root / "Cargo.toml").read_text()
    assert aq.__version__ == re.search(r'^version = "(.+)"', manifest, re.MULTILINE)[1]


def test_isa(python):
    assert aq.isa_name() in ("scalar", "avx2", "avx512", "avx512vnni", "neon", "neon-dotprod")
    env = {**os.environ, "AQ_ISA": "scalar"}
    assert python("import arrowquant; print(arrowquant.isa_name())", env=env).stdout == "scalar\n"


def test_everything_public_has_a_docstring_and_types():
    checked = 0
    for name in aq.__all__:
        thing = getattr(aq, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
            checked += 1
        if inspect.isfunction(thing):
            params = inspect.signature(thing).parameters.values()
            assert all(p.annotation is not inspect.Parameter.empty for p in params), name
    assert checked > 30
    folder = os.path.dirname(aq.__file__)
    assert os.path.exists(os.path.join(folder, "py.typed"))


def test_another_version_of_the_interface_is_refused(python):
    text = (
        "import arrowquant._library as lib\n"
        "lib.ABI_VERSION = 7\n"
        "try: lib._load()\n"
        "except ImportError as error: print(error)\n"
    )
    assert "version 1 of the binary interface; this package needs version 7" in python(text).stdout


def test_a_missing_library_is_an_import_error(python):
    text = (
        "try: import arrowquant\n"
        "except ImportError as error: print(error)\n"
    )
    env = {**os.environ, "ARROWQUANT_LIBRARY": "/nowhere/lib.so"}
    assert "/nowhere/lib.so" in python(text, env=env).stdout


# Config


def test_config_has_the_defaults_of_its_profile():
    assert aq.Config()["bit_width"] == 4
    config = aq.Config("edge", group_size=64)
    assert dict(config.items()) == {
        "deployment_profile": "edge", "bit_width": 2, "group_size": 64, "scheme": "symmetric",
        "method": "lsq", "gain": "auto", "scale_dtype": "auto", "on_nonfinite": "error",
        "packed": "error", "compression": "none", "streaming_mode": True, "memory_limit": "none", "fail_fast": False,
        "calibration": "none", "enable_time_aware": True, "num_time_groups": 5,
        "time_weighting": "auto", "enable_spatial": False, "modality": "auto", "min_cosine": 0.65,
        "mixed_precision": False, "max_size": "none", "avg_bits": "none", "candidates": "auto",
        "seed": 0, "num_threads": 2, "rules": "",
    }
    assert list(config) == list(config.keys()) and len(config) == 27


def test_config_takes_aliases_and_rules():
    config = aq.Config(bits=8, threads=3, profile="cloud", keep=["a.*", "b"])
    config["rules"] = [r"re:x\{1;2\}=bits:2", {"pattern": "v", "bits": 8, "group": 32}]
    config.set("rules", "c=keep;d=bits:4")
    config.set("keep", "e")
    assert config["bits"] == 8 and config["threads"] == 3 and config["profile"] == "cloud"
    assert config["rules"] == (
        r"a.*=keep;b=keep;re:x\{1;2\}=bits:2;v=bits:8,group:32;c=keep;d=bits:4;e=keep"
    )
    assert "bits" in config and "rules" in config and "bit" not in config and 3 not in config
    assert config.get("bits") == 8 and config.get("nonsense", "x") == "x"


def test_config_from_yaml_and_environment(tmp_path, monkeypatch):
    text = "bit_width: 2\nscheme: affine\nrules: ['w=keep']\n"
    config = aq.Config.from_yaml(text)
    assert (config["bit_width"], config["scheme"], config["rules"]) == (2, "affine", "w=keep")
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert dict(aq.Config.from_yaml_file(file).items()) == dict(config.items())
    again = aq.Config.from_yaml(config.to_yaml())
    assert dict(again.items()) == dict(config.items())
    monkeypatch.setenv("AQ_BIT_WIDTH", "8")
    assert aq.Config()["bit_width"] == 4
    assert aq.Config.from_env()["bit_width"] == 8
    config.merge_env()
    assert config["bit_width"] == 8 and config["scheme"] == "affine"


def test_a_copied_config_is_another_one_that_follows_its_profile(tmp_path, monkeypatch):
    file = tmp_path / "settings.yaml"
    file.write_text("method: minmax\nrules: ['w=keep']")
    monkeypatch.setenv("AQ_GAIN", "lsq")
    config = aq.Config("edge", keep=["x"])
    config.merge_yaml_file(file)
    config.merge_env()
    copy = config.copy()
    monkeypatch.delenv("AQ_GAIN")
    file.unlink()
    assert dict(copy.items()) == dict(config.items()) == dict(copy.copy().items())
    copy["profile"] = "cloud"
    assert copy["bits"] == 8 and config["bits"] == 2
    assert copy["rules"] == "x=keep;w=keep" and copy["gain"] == "lsq"


# Quantizing


def held_in(page):
    """Returns the report in a page."""
    assert page.startswith("<!doctype html>")
    return json.loads(page.split('type="application/json">')[1].split("</script>")[0])


def test_quantize_reports_what_numpy_measures(small, tensors, tmp_path):
    output = tmp_path / "m.parquet"
    report = aq.quantize(small, output, bits=4, group_size=64, threads=1)
    assert len(report) == len(tensors) and [t.name for t in report] == [
        t.name for t in aq.Source.open(small)
    ]
    total = report.totals
    assert (total.quantized, total.kept, total.threads) == (3, 4, 1)
    assert total.output_bytes == output.stat().st_size and total.seconds > 0
    assert total.source_bytes == sum(data.nbytes for _, data in tensors.values())
    model = aq.open(output)
    all_w, all_y = [], []
    for name in QUANTIZED:
        entry, w = report[name], exact(tensors, name)
        (tile,) = model[name].tiles
        y = decode_tile(tile).reshape(w.shape)
        assert entry.format == "int4" and entry.f32_scale_tiles == 0 and entry.reason
        assert entry.cosine == pytest.approx(cosine(w, y), abs=1e-7)
        assert entry.sqnr_db == pytest.approx(sqnr_db(w, y), abs=1e-4)
        assert entry.bytes == tile.codes.nbytes + tile.scales.nbytes
        assert entry.bits_per_weight == pytest.approx(8 * entry.bytes / w.size)
        all_w.append(w.ravel())
        all_y.append(y.ravel())
    all_w, all_y = np.concatenate(all_w), np.concatenate(all_y)
    assert total.weights == all_w.size
    assert total.cosine == pytest.approx(cosine(all_w, all_y), abs=1e-7)
    assert total.sqnr_db == pytest.approx(sqnr_db(all_w, all_y), abs=1e-4)
    kept = report["position_ids"]
    assert (kept.format, kept.cosine, kept.sqnr_db, kept.bytes) == ("kept", None, None, 96)
    assert report["empty.weight"].bits_per_weight is None
    assert report[0] == next(iter(report))
    with pytest.raises(KeyError):
        report["nothing"]
    assert report.to_dict() == json.loads(report.to_json()) == held_in(report.to_html())
    assert report.to_dict()["total"]["cosine"] == total.cosine


def test_every_kind_of_input_gives_the_same_tensors(small, tensors, tmp_path):
    import pyarrow as pa

    def as_given(name):
        dtype, data = tensors[name]
        return (data, "bf16") if dtype == "BF16" else data

    mapping = {name: as_given(name) for name in tensors}
    table = pa.table(
        {
            "name": list(tensors),
            "shape": [list(data.shape) for _, data in tensors.values()],
            "dtype": [dtype.lower() for dtype, _ in tensors.values()],
            "data": pa.array([data.tobytes() for _, data in tensors.values()], pa.binary()),
        }
    )
    source = aq.Source.from_tensors(mapping)
    inputs = {"path": str(small), "mapping": mapping, "source": source, "arrow": table}
    tiles = {}
    for kind, input in inputs.items():
        output = tmp_path / f"{kind}.parquet"
        report = aq.quantize(input, output, bits=2, rules=["blocks.0.norm.weight=bits:8"])
        assert report.totals.quantized == 4
        with aq.open(output) as model:
            tiles[kind] = {
                name: [(bytes(t.codes), t.scales and bytes(t.scales)) for t in tensor.tiles]
                for name, tensor in model.items()
            }
            assert model["blocks.0.norm.weight"].tiles[0].format == "int8"
    assert tiles["mapping"] == tiles["source"] == tiles["arrow"] == tiles["path"]


def test_settings_win_over_the_config_which_stays_as_it_is(small, tmp_path):
    config = aq.Config("edge", method="minmax")
    aq.quantize(small, tmp_path / "a.parquet", config=config, bits=8)
    aq.quantize(small, tmp_path / "b.parquet", config={"profile": "edge", "method": "minmax"})
    recorded = [
        json.loads(aq.open(tmp_path / f"{name}.parquet").metadata["arrowquant.config"])
        for name in "ab"
    ]
    assert [(r["bit_width"], r["group_size"], r["method"]) for r in recorded] == [
        (8, 256, "minmax"), (2, 256, "minmax"),
    ]
    assert config["bits"] == 2


def test_progress_and_log_are_told(small, dit, tmp_path):
    told = []
    logged = []
    aq.quantize(
        dit,
        tmp_path / "m.parquet",
        progress=lambda done, total: told.append((done, total)),
        log=lambda level, message: logged.append((level, message)),
        keep=["matches.nothing"],
    )
    source_bytes = sum(tensor.bytes for tensor in aq.Source.open(dit))
    assert told[-1] == (source_bytes, source_bytes) and sorted(told) == told
    assert logged == [(logging.WARNING, "rule matches.nothing=keep matches no tensor")]


@pytest.mark.parametrize("bar", ["tqdm", "plain"])
def test_progress_true_shows_a_bar(bar, small, tmp_path, capsys, monkeypatch):
    if bar == "plain":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    aq.quantize(small, tmp_path / "m.parquet", progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown and ("#" * 30 in shown) == (bar == "plain") and shown.endswith("\n")
    aq.quantize(small, tmp_path / "m.parquet", progress=False)
    assert capsys.readouterr().err == ""


def test_threads_are_as_settings_or_the_call_say(small, tmp_path):
    output = tmp_path / "m.parquet"
    assert aq.quantize(small, output, config={"num_threads": 2}).totals.threads == 2
    assert aq.quantize(small, output, config={"num_threads": 2}, threads=1).totals.threads == 1
    source = aq.Source.open(small)
    assert aq.quantize(source, output, config={"num_threads": 3}).totals.threads == 3
    assert aq.quantize_to_bytes(source, threads=1)[1].totals.threads == 1


# Source


def test_source_describes_its_tensors(small, tensors):
    with aq.Source.open(small) as source:
        assert len(source) == len(tensors)
        for info in source:
            dtype, data = tensors[info.name]
            assert (info.dtype, info.shape, info.bytes) == (dtype.lower(), data.shape, data.nbytes)
            assert info.tiles == 0
            if data.ndim > 1 and data.size:
                assert (info.rows, info.cols) == (data.shape[0], data.size // data.shape[0])


@pytest.mark.parametrize(
    "data, dtype",
    [
        (np.zeros((2, 3), "<f2"), "f16"), (np.zeros((2, 3), "<f8"), "f64"),
        (np.zeros((2, 3), "<c8"), "c64"), (np.zeros((2, 3), "?"), "bool"),
        (np.zeros((2, 3), "<i8"), "i64"), (np.zeros((2, 3), "<u2"), "u16"),
        (np.zeros((2, 3), "<i4"), "i32"), (np.zeros((2, 3), "i1"), "i8"),
        (np.zeros((), "<f4"), "f32"), (np.zeros((0, 3), "<f4"), "f32"),
        (array.array("f", [1, 2]), "f32"), (array.array("l", [1, 2]), "i64"),
        (memoryview(b"abc"), "u8"), (b"abc", "u8"), (np.float32(1), "f32"),
    ],
)
def test_dtypes_and_shapes_are_those_of_the_buffer(data, dtype):
    source = aq.Source()
    source.add_tensor("t", data)
    view = memoryview(data)
    (info,) = source
    assert (info.dtype, info.shape, info.bytes) == (dtype, view.shape, view.nbytes)


def test_dtype_and_shape_can_be_given():
    source = aq.Source()
    source.add_tensor("bf16", np.zeros((2, 3), "<u2"), dtype="bf16")
    source.add_tensor("bytes", bytes(12), dtype="bf16", shape=[3, 2])
    source.add_tensor("f8", bytes(6), dtype="f8_e4m3")
    source.add_tensor("f4", bytes(6), dtype="f4", shape=(4, 3))
    source.add_tensor("mmap", mmap.mmap(-1, 64), dtype="f32", shape=(4, 4))
    assert [(t.name, t.dtype, t.shape) for t in source] == [
        ("bf16", "bf16", (2, 3)), ("bytes", "bf16", (3, 2)), ("f8", "f8_e4m3", (6,)),
        ("f4", "f4", (4, 3)), ("mmap", "f32", (4, 4)),
    ]


# Plan


def test_plan_says_what_each_tensor_will_get(small, tensors, tmp_path):
    source = aq.Source.open(small)
    plan = aq.Plan.create(source, bits=2, group_size=32, scheme="affine", keep=["*.conv.*"])
    assert len(plan) == len(source) and len(plan.entries) == len(plan)
    entry = plan["blocks.0.attn.qkv.weight"]
    assert (entry.format, entry.group_size, entry.scheme, entry.scale_dtype) == (
        "int2", 32, "affine", "auto",
    )
    assert (entry.method, entry.gain, entry.source_bytes) == ("lsq", "unit", 48 * 200 * 4)
    assert entry.bytes == 48 * (50 + 7 * 4)
    assert entry.bits_per_weight == pytest.approx(8 * entry.bytes / 9600)
    kept = plan["blocks.0.conv.weight"]
    assert (kept.format, kept.group_size, kept.scheme, kept.scale_dtype, kept.method, kept.gain) == (
        "kept", None, None, None, None, None,
    )
    assert plan[0] == next(iter(plan)) and plan[-1] == list(plan)[-1]
    with pytest.raises(KeyError):
        plan["nothing"]
    with pytest.raises(AttributeError):
        entry.format = "int8"
    report = plan.run(source, tmp_path / "m.parquet")
    assert [(t.name, t.format, t.bytes) for t in report] == [
        (e.name, e.format, e.bytes) for e in plan
    ]


def test_plan_is_made_of_a_list_of_tensors_too(tmp_path):
    path = tmp_path / "list.json"
    shapes = {"film.0.input_conv.weight": [32, 32, 3], "upsample.0.block1.weight": [512, 768, 1]}
    path.write_text(json.dumps({"dtype": "f32", "tensors": shapes}))
    plan = aq.Plan.create(path, bits=4)
    assert plan.modality == "audio" and plan.families == ("WaveGrad",)
    assert plan.evidence == (
        "audio, by film.0.input_conv.weight and upsample.0.block1.weight, as in WaveGrad",
    )
    # Rows of 96 and of 768 codes of half a byte, and an f16 scale for 128.
    assert [entry.bytes for entry in plan] == [32 * (48 + 2), 512 * (384 + 12)]
    other = aq.Plan.create(path, modality="image")
    assert other.modality == "image" and other.families == ()
    with pytest.raises(aq.Error, match="list.json: lists tensors without their weights"):
        plan.run(path, tmp_path / "out.parquet")
    with pytest.raises(aq.ConfigError, match="invalid value 'smell' .expected auto, text, code"):
        aq.Config(modality="smell")


def test_plan_can_be_edited_and_written_down(small, tmp_path):
    plan = aq.Plan.create(small)
    plan.set("blocks.0.mlp.weight", "bits:8,group:32")
    plan.set("blocks.0.attn.qkv.weight", "keep")
    again = aq.Plan.from_json(plan.to_json())
    assert list(again) == list(plan) and again["blocks.0.mlp.weight"].format == "int8"
    edited = json.loads(plan.to_json())
    assert edited["tensors"][0]["name"] == plan[0].name
    first, second = (tmp_path / name for name in ["a.parquet", "b.parquet"])
    plan.run(small, first)
    again.run(aq.Source.open(small), second)
    assert first.read_bytes() == second.read_bytes()
    with aq.open(first) as model:
        assert model["blocks.0.attn.qkv.weight"].tiles[0].format == "kept"


def test_size_bound_holds(small):
    for settings in [{"bits": 8}, {"bits": 2, "scale_dtype": "f32"}, {"compression": "zstd"}]:
        plan = aq.Plan.create(small, **settings)
        file, report = plan.run_to_bytes(small)
        assert isinstance(file, bytearray) and len(file) == report.totals.output_bytes
        assert 0 < len(file) <= plan.size_bound(small)
        assert file[:4] == file[-4:] == b"PAR1"


# Model


def test_model_is_a_mapping_of_tensors(packed, tensors):
    with aq.open(packed) as model:
        assert set(model) == set(tensors) == set(model.keys()) and len(model) == len(tensors)
        assert "position_ids" in model and "nothing" not in model
        assert model.get("nothing") is None
        assert model["temperature"].info.shape == ()
        assert model == model and model != aq.open(packed)
    assert model.closed


def test_tiles_decode_as_the_format_says(packed, tensors):
    model = aq.open(packed)
    for name in QUANTIZED:
        w = exact(tensors, name)
        tensor = model[name]
        (tile,) = tensor.tiles
        assert (tile.format, tile.scheme, tile.group_size, tile.scale_dtype) == (
            "int4", "symmetric", 64, "f16",
        )
        assert (tile.row_start, tile.rows, tile.cols) == (0, w.shape[0], w[0].size)
        assert tile.codes.shape == (tile.rows, -(-tile.cols // 2)) and tile.codes.readonly
        assert tile.scales.shape == (tile.rows, 2 * -(-tile.cols // 64)) and tile.scales.readonly
        assert tile.biases is None and tile.dtype == tensors[name][0].lower()
        planes = tile.numpy()
        assert planes.codes.dtype == np.uint8 and planes.codes.shape == tile.codes.shape
        assert planes.scales.dtype == np.float16
        assert planes.scales.shape == (tile.rows, -(-tile.cols // 64)) and planes.biases is None
        assert not planes.codes.flags.writeable and not planes.scales.flags.writeable
        y = decode_tile(tile)
        assert tensor.dequantize().tobytes() == y.tobytes()
        assert tensor.dequantize().shape == w.shape
        assert tile.cosine == pytest.approx(cosine(w, y), abs=1e-6)
        assert tile.sqnr_db == pytest.approx(sqnr_db(w, y), abs=1e-3)
        bits = 8 * (tile.codes.nbytes + tile.scales.nbytes) / w.size
        assert tile.bits_per_weight == pytest.approx(bits, rel=1e-6)


def test_views_are_the_bytes_of_the_file(packed):
    file = packed.read_bytes()
    model = aq.open(packed)
    for tensor in model.values():
        for tile in tensor.tiles:
            for plane in (tile.codes, tile.scales, tile.biases):
                assert plane is None or bytes(plane) in file


@pytest.mark.parametrize("settings", [
    {"scheme": "affine"}, {"scale_dtype": "f32", "bits": 8}, {"compression": "zstd", "bits": 2},
])
def test_other_layouts_are_viewed_as_they_are(settings, small, tensors):
    file, _ = aq.quantize_to_bytes(small, **settings)
    model = aq.open(file)
    for name in QUANTIZED:
        (tile,) = model[name].tiles
        assert tile.scale_dtype == settings.get("scale_dtype", "f16")
        planes = tile.numpy()
        assert planes.scales.dtype == {"f16": np.float16, "f32": np.float32}[tile.scale_dtype]
        assert (planes.biases is not None) == (settings.get("scheme") == "affine")
        assert model[name].dequantize().tobytes() == decode_tile(tile).tobytes()


def test_kept_tensors_are_viewed_as_they_were(packed, tensors):
    model = aq.open(packed)
    for name in ["position_ids", "blocks.0.norm.weight", "temperature", "empty.weight"]:
        _, data = tensors[name]
        (tile,) = model[name].tiles
        assert bytes(tile.codes) == data.tobytes()
        assert (tile.format, tile.scales, tile.biases, tile.recipe) == ("kept", None, None, None)
        assert (tile.scheme, tile.group_size, tile.scale_dtype) == (None, None, None)
        assert (tile.cosine, tile.sqnr_db) == (None, None)
        assert tile.numpy().codes.tobytes() == data.tobytes()
    assert model["temperature"].dequantize() == np.float32(0.5)
    assert model["temperature"].dequantize().shape == ()
    assert model["empty.weight"].dequantize().shape == (0, 16)


def test_quantized_tensors_without_elements():
    file, _ = aq.quantize_to_bytes({"w": np.zeros((0, 16), "<f4")}, rules=["w=bits:4,group:16"])
    tensor = aq.open(file)["w"]
    planes = tensor.tiles[0].numpy()
    assert planes.codes.shape[0] == planes.scales.shape[0] == 0
    assert tensor.tiles[0].format == "int4" and tensor.dequantize("f16").shape == (0, 16)


def test_rows_of_sub_byte_elements_are_viewed_flat():
    source = aq.Source()
    source.add_tensor("t", bytes([1, 2, 3]), dtype="f4", shape=(2, 3))
    file, _ = aq.quantize_to_bytes(source)
    (tile,) = aq.open(file)["t"].tiles
    assert tile.codes.tobytes() == b"\1\2\3" and tile.numpy().codes.tolist() == [1, 2, 3]


def test_dequantize_gives_types_and_rows(packed, tensors):
    model = aq.open(packed)
    for name in QUANTIZED + ["blocks.0.norm.weight"]:
        tensor = model[name]
        y = tensor.dequantize()
        half = tensor.dequantize("f16")
        assert half.dtype == np.float16 and half.tobytes() == y.astype("<f2").tobytes()
        brain = tensor.dequantize("bf16")
        assert brain.dtype == ml_dtypes.bfloat16 and brain.tobytes() == round_to_bf16(y).tobytes()
        matrix = y.reshape(tensor.info.rows, tensor.info.cols)
        for rows in [slice(1, 4), slice(None, 2), slice(-1, None), slice(0, 0), slice(5, 2)]:
            assert tensor.dequantize(rows=rows).tolist() == matrix[rows].tolist()


def test_bf16_without_ml_dtypes(packed, monkeypatch):
    tensor = aq.open(packed)["blocks.0.mlp.weight"]
    with_types = tensor.dequantize("bf16")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    bits = tensor.dequantize("bf16")
    assert bits.dtype == np.uint16 and bits.tobytes() == with_types.tobytes()


def test_tensors_are_sliced_and_become_arrays(packed, tensors):
    model = aq.open(packed)
    for name in QUANTIZED + ["blocks.0.norm.weight"]:
        tensor = model[name]
        y = tensor.dequantize()
        assert tensor.shape == y.shape and len(tensor) == len(y)
        for rows in [slice(1, 4), slice(None, 2), slice(-1, None), slice(0, 0), slice(5, 2)]:
            assert tensor[rows].dtype == np.float32 and tensor[rows].tolist() == y[rows].tolist()
        for row in (0, 3, -1, np.int64(2)):
            assert np.asarray(tensor[row]).tolist() == y[row].tolist()
        assert [np.asarray(row).tolist() for row in tensor] == y.tolist()
        for row in (len(y), -len(y) - 1):
            with pytest.raises(IndexError, match=f"there is no row {row}"):
                tensor[row]
        with pytest.raises(TypeError):
            tensor["1"]
        assert np.asarray(tensor).tobytes() == y.tobytes()
        assert np.array(tensor, dtype="f8").tolist() == y.tolist()
        assert np.from_dlpack(tensor).tobytes() == y.tobytes()
        assert tensor.__dlpack_device__() == np.zeros(1).__dlpack_device__()
    scalar, empty = model["temperature"], model["empty.weight"]
    assert float(np.asarray(scalar)) == 0.5 and bool(empty) and len(empty) == 0
    assert empty[:].shape == (0, 16)
    with pytest.raises(TypeError, match="a scalar has no rows"):
        scalar[0]
    with pytest.raises(aq.TensorError, match="i64 values are never quantized"):
        model["position_ids"][0]


def test_matvec_is_within_its_error(packed):
    model = aq.open(packed)
    for name in QUANTIZED:
        tensor = model[name]
        w = np.float64(tensor.dequantize()).reshape(tensor.info.rows, -1)
        for shape in [(w.shape[1],), (1, w.shape[1]), (5, w.shape[1]), (0, w.shape[1])]:
            x = noise(9, *shape)
            y = tensor.matvec(x)
            assert y.dtype == np.float32 and y.shape == (*shape[:-1], w.shape[0])
            bound = (np.abs(np.float64(x)) @ np.abs(w).T) * 2**-17
            assert (np.abs(np.float64(x) @ w.T - y) <= bound).all()


def test_model_verifies(packed, small, tensors, tmp_path):
    model = aq.open(packed)
    alone = model.verify()
    assert alone and alone.ok and len(alone) == len(tensors) and not alone.failures
    assert all(check.cosine is None and check.sqnr_db is None for check in alone)
    for original in [small, aq.Source.open(small)]:
        found = model.verify(original, min_cosine=0.9)
        assert found and [check.name for check in found] == list(model)
        checks = {check.name: check for check in found}
        for name in QUANTIZED:
            y = model[name].dequantize()
            assert checks[name].cosine == pytest.approx(cosine(exact(tensors, name), y), abs=1e-7)
        assert checks["position_ids"].cosine is None
    strict = model.verify(small, min_cosine=1)
    assert not strict and {check.name for check in strict.failures} == set(QUANTIZED)
    assert "below" in strict.failures[0].problem
    assert strict.to_dict() == json.loads(strict.to_json())
    other = {**tensors, "more": ("F32", noise(1, 2, 16))}
    lacking = model.verify(write_safetensors(tmp_path / "o.safetensors", other))
    assert [(c.name, c.problem) for c in lacking.failures] == [
        ("more", "the file lacks this tensor of the original")
    ]
    assert list(lacking)[-1].name == "more"


@pytest.mark.parametrize("dtype", [None, "f32", "f16", "bf16"])
def test_model_decodes_to_a_file(dtype, packed, tensors, tmp_path):
    output = tmp_path / "back.safetensors"
    told = []
    model = aq.open(packed)
    model.dequantize(output, dtype, progress=lambda *step: told.append(step), threads=1)
    back = read_safetensors(output)
    assert set(back) == set(tensors) and told
    for name, (source_dtype, data) in tensors.items():
        assert back[name].shape == data.shape
        if source_dtype in ("F32", "F16", "BF16"):
            wanted = model[name].dequantize(dtype or source_dtype.lower())
            assert back[name].tobytes() == wanted.tobytes(), name
        else:
            assert back[name].tobytes() == data.tobytes()


def test_metadata_is_that_of_the_footer(packed):
    import pyarrow.parquet as pq

    footer = {k.decode(): v.decode() for k, v in pq.read_metadata(packed).metadata.items()}
    model = aq.open(packed)
    found = dict(model.metadata)
    assert found == {k: v for k, v in footer.items() if k.startswith("arrowquant.")}
    assert len(model.metadata) == len(found) == 7
    assert json.loads(model.metadata["arrowquant.source_metadata"]) == {"architecture": "test"}
    assert model.metadata.get("nothing") is None


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_files_rewritten_by_pyarrow_are_read(packed, tmp_path, version, codec, dictionary):
    import pyarrow.parquet as pq

    table = pq.read_table(packed)
    table = table.replace_schema_metadata(pq.read_metadata(packed).metadata)
    copy = tmp_path / "copy.parquet"
    pq.write_table(
        table, copy, use_dictionary=dictionary, compression=codec, data_page_version=version
    )
    original, rewritten = aq.open(packed), aq.open(copy)
    assert list(original) == list(rewritten) and rewritten.verify()
    for name in QUANTIZED:
        assert original[name].dequantize().tobytes() == rewritten[name].dequantize().tobytes()


@pytest.mark.parametrize("codec", ["uncompressed", "snappy", "zstd"])
def test_files_rewritten_by_duckdb_are_read(packed, tmp_path, codec):
    import duckdb
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(packed).metadata.items()
    quoted = [(k.decode(), v.decode().replace("'", "''")) for k, v in metadata]
    keys = ", ".join(f"'{k}': '{v}'" for k, v in quoted if k.startswith("arrowquant."))
    copy = tmp_path / "copy.parquet"
    options = f"FORMAT parquet, COMPRESSION {codec}, KV_METADATA {{{keys}}}"
    duckdb.sql(f"COPY (SELECT * FROM '{packed}') TO '{copy}' ({options})")
    original, rewritten = aq.open(packed), aq.open(copy)
    assert list(original) == list(rewritten) and rewritten.verify()
    for name in QUANTIZED:
        assert original[name].dequantize().tobytes() == rewritten[name].dequantize().tobytes()


def test_models_in_memory_are_those_in_files(packed):
    file = packed.read_bytes()
    of_path = aq.open(packed)
    for data in (file, bytearray(file), memoryview(file), np.frombuffer(file, "u1")):
        model = aq.open(data)
        assert list(model) == list(of_path)
        for name in QUANTIZED:
            assert model[name].dequantize().tobytes() == of_path[name].dequantize().tobytes()
        assert model.verify()


def test_names_may_hold_anything(tmp_path):
    names = ["a\0b.weight", "ä\n\u2028 日本.weight", "🙂.weight", "'\";.weight"]
    tensors = {name: noise(i, 4, 32) for i, name in enumerate(names)}
    path = write_safetensors(tmp_path / "names.safetensors", tensors)
    assert {info.name for info in aq.Source.open(path)} == set(names)
    file, report = aq.quantize_to_bytes(path)
    assert {entry.name for entry in report} == set(names)
    assert {entry.name for entry in aq.Plan.create(path)} == set(names)
    model = aq.open(file)
    assert set(model) == set(names) == {check.name for check in model.verify()}
    for name, w in tensors.items():
        assert cosine(w, model[name].dequantize()) > 0.98


# Kernels

LAYOUTS = [
    (format, scheme, group, cols)
    for format in BITS
    for scheme in ("symmetric", "affine")
    for group, cols in [(16, 40), (48, 129), (0, 77), (128, 16)]
]


@pytest.mark.parametrize("format, scheme, group, cols", LAYOUTS)
def test_quantize_rows_is_minmax_of_the_format(format, scheme, group, cols):
    w = noise(5, 6, cols)
    found = aq.kernels.quantize_rows(
        w, format=format, scheme=scheme, group_size=group, method="minmax", gain="lsq"
    )
    codes, scales, biases = minmax(w, format, scheme, group)
    assert (found.rows, found.cols) == w.shape
    assert (unpack(found.codes, BITS[format], *w.shape) == codes).all()
    assert bytes(found.scales) == scales.tobytes()
    assert found.biases == (biases.tobytes() if scheme == "affine" else None)
    sizes = aq.kernels.plane_sizes(*w.shape, found.recipe)
    assert sizes == (len(found.codes), len(found.scales), len(found.biases or b""))
    y = decode_tile(found)
    assert found.quality.cosine == pytest.approx(cosine(w, y), abs=1e-7)
    assert found.quality.sqnr_db == pytest.approx(sqnr_db(w, y), abs=1e-4)
    assert found.quality.bits_per_weight == pytest.approx(8 * sum(sizes) / w.size)
    assert aq.kernels.dequantize_rows(found).tobytes() == y.tobytes()
    assert aq.kernels.dequantize_rows(found, dtype="f16").tobytes() == y.astype("<f2").tobytes()
    assert aq.kernels.dequantize_rows(found, dtype="bf16").tobytes() == round_to_bf16(y).tobytes()
    x = noise(6, 3, cols)
    bound = (np.abs(np.float64(x)) @ np.abs(np.float64(y)).T) * 2**-17
    assert (np.abs(np.float64(x) @ np.float64(y).T - aq.kernels.matvec(found, x)) <= bound).all()
    assert aq.kernels.matvec(found, x[0]).tobytes() == aq.kernels.matvec(found, x)[0].tobytes()
    planes = found.numpy()
    assert planes.codes.shape == (6, -(-cols * BITS[format] // 8))
    assert planes.scales.tolist() == scales.tolist()


def bytes_of(x, group):
    """Returns vectors as signed bytes and the scale of each value, by the header's description."""
    values, scales = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.float32)
    for start in range(0, x.shape[1], group):
        part = np.s_[:, start : start + group]
        largest = np.abs(x[part]).max(axis=1, keepdims=True)
        inverse = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), 0)
        values[part] = np.rint(x[part] * inverse.astype("<f4"))
        scales[part] = largest / np.float32(127)
    return values, scales


@pytest.mark.parametrize("format, scheme, group, cols", LAYOUTS)
def test_matvec_int8_multiplies_rounded_vectors(format, scheme, group, cols):
    w = noise(5, 6, cols)
    found = aq.kernels.quantize_rows(w, format=format, scheme=scheme, group_size=group)
    x = noise(6, 3, cols)
    x[1] = 0
    span = group or cols
    values, scales = bytes_of(x, span)
    starts = range(0, cols, span)
    activations = aq.kernels.quantize_vectors(found, x)
    assert activations.shape == x.shape and activations.fits == (BITS[format], group, cols, 0)
    assert activations.values.dtype == np.int8 and activations.values.shape == x.shape
    assert activations.scales.tolist() == scales[:, starts].tolist()
    sums = np.add.reduceat(values, starts, axis=1)
    assert activations.sums.tolist() == (scales[:, starts] * sums).tolist()
    for start in starts:
        # In an order of their own.
        part = np.s_[:, start : start + span]
        assert (np.sort(activations.values[part]) == np.sort(values[part])).all()

    decoded, rounded = np.float64(decode_tile(found)), np.float64(values) * np.float64(scales)
    largest = np.maximum.reduceat(np.abs(decoded), starts, axis=1)
    bound = np.add.reduceat(np.abs(rounded), starts, axis=1) @ largest.T * 2**-17
    y = aq.kernels.matvec_int8(found, activations)
    assert y.dtype == np.float32 and y.shape == (3, 6) and (y[1] == 0).all()
    assert (np.abs(rounded @ decoded.T - y) <= bound).all()
    one = aq.kernels.quantize_vectors(found, x[0])
    assert one.shape == (cols,) and one.scales.shape == (len(starts),)
    assert aq.kernels.matvec_int8(found, one).tobytes() == y[0].tobytes()
    assert aq.kernels.matvec_int8(found, aq.kernels.quantize_vectors(found, x[:0])).shape == (0, 6)


@pytest.mark.parametrize("count", [1, 15, 40, 1000, 5000])
def test_compare_measures_what_numpy_does(count):
    a = noise(1, count)
    kinds = {"f32": a, "f16": a.astype("<f2"), "bf16": to_bf16(a)}
    for a_dtype, original in kinds.items():
        w = from_bf16(original) if a_dtype == "bf16" else original.astype("<f4")
        for b_dtype, rounded in kinds.items():
            found = aq.kernels.compare(original, rounded, a_dtype=a_dtype, b_dtype=b_dtype)
            y = from_bf16(rounded) if b_dtype == "bf16" else rounded.astype("<f4")
            assert found.cosine == pytest.approx(cosine(w, y), abs=1e-9)
            if (w == y).all():
                assert found == (1, np.inf)
            else:
                assert found.sqnr_db == pytest.approx(sqnr_db(w, y), abs=1e-4)
    assert aq.kernels.compare(a, -a).cosine == pytest.approx(-1)
    assert aq.kernels.compare(a, 0 * a) == (0, 0) and aq.kernels.compare(0 * a, a) == (0, -np.inf)
    assert aq.kernels.compare(a[:, None], memoryview(a)) == aq.kernels.compare(a[:0], b"", b_dtype="f16") == (1, np.inf)
    # Magnitudes whose squares f32 does not hold.
    for power in [1e-30, 1e30]:
        w, y = a * np.float32(power), a[::-1].copy() * np.float32(power)
        assert aq.kernels.compare(w, y).cosine == pytest.approx(cosine(w, y), abs=1e-6)


def test_quantize_rows_is_what_files_hold(packed, tensors):
    model = aq.open(packed)
    for name in QUANTIZED:
        dtype, data = tensors[name]
        (tile,) = model[name].tiles
        found = aq.kernels.quantize_rows(data, dtype=dtype.lower(), group_size=64)
        assert bytes(found.codes) == bytes(tile.codes) and bytes(found.scales) == bytes(tile.scales)
        assert aq.kernels.dequantize_rows(tile).tobytes() == model[name].dequantize().tobytes()
        x = noise(1, tile.cols)
        assert aq.kernels.matvec(tile, x).tobytes() == model[name].matvec(x).tobytes()


@pytest.mark.parametrize("weights, options", [
    (lambda w: w, {}),
    (lambda w: w.reshape(4, 8, 4), {}),
    (lambda w: w.ravel(), {"rows": 4}),
    (lambda w: w.ravel(), {"cols": 32}),
    (lambda w: array.array("f", w.ravel()), {"rows": 4, "cols": 32}),
    (lambda w: memoryview(w), {}),
    (lambda w: w.tobytes(), {"rows": 4, "dtype": "f32"}),
    (lambda w: memoryview(b"x" + w.tobytes())[1:], {"cols": 32, "dtype": "f32"}),
])
def test_weights_may_be_any_buffer(weights, options):
    w = noise(8, 4, 32)
    wanted = aq.kernels.quantize_rows(w, bits=8, group_size=16)
    found = aq.kernels.quantize_rows(weights(w), bits=8, group_size=16, **options)
    assert found == wanted


def test_half_precision_weights():
    w = noise(8, 4, 32)
    half = w.astype("<f2")
    assert aq.kernels.quantize_rows(half) == aq.kernels.quantize_rows(half.astype("<f4"))
    brain = to_bf16(w)
    assert aq.kernels.quantize_rows(brain, dtype="bf16") == aq.kernels.quantize_rows(from_bf16(brain))


def test_importance_weighs_columns():
    w = noise(8, 16, 64)
    h = np.where(np.arange(64) < 8, 1000, 0.001).astype("<f4")
    plain = aq.kernels.quantize_rows(w, bits=2, gain="lsq")
    weighed = aq.kernels.quantize_rows(w, bits=2, gain="lsq", importance=h)
    error = lambda q: (h * (aq.kernels.dequantize_rows(q) - w) ** 2).sum()
    assert error(weighed) < error(plain)


def test_results_can_go_into_the_callers_memory():
    w = noise(8, 4, 64)
    wanted = aq.kernels.quantize_rows(w, bits=4, scheme="affine", group_size=32)
    out = [np.zeros(len(plane), "u1") for plane in (wanted.codes, wanted.scales, wanted.biases)]
    found = aq.kernels.quantize_rows(w, bits=4, scheme="affine", group_size=32, out=out)
    assert found.codes is out[0] and found.biases is out[2]
    assert [p.tobytes() for p in out] == [bytes(wanted.codes), bytes(wanted.scales), bytes(wanted.biases)]
    y = np.empty((4, 64), "<f4")
    assert aq.kernels.dequantize_rows(found, out=y) is y
    assert y.tobytes() == aq.kernels.dequantize_rows(wanted).tobytes()
    symmetric = aq.kernels.quantize_rows(w, out=[bytearray(4 * 32), bytearray(4 * 2), None])
    assert symmetric == aq.kernels.quantize_rows(w)


def test_matrices_without_elements():
    for shape in [(0, 5), (3, 0), (0, 0)]:
        found = aq.kernels.quantize_rows(np.zeros(shape, "<f4"))
        assert (found.rows, found.cols) == shape and not found.codes and not found.scales
        assert aq.kernels.dequantize_rows(found).shape == shape
        x = np.zeros(shape[1], "<f4")
        assert aq.kernels.matvec(found, x).tolist() == [0] * shape[0]
        assert aq.kernels.matvec_int8(found, aq.kernels.quantize_vectors(found, x)).tolist() == [0] * shape[0]


def test_matrices_are_sliced(packed):
    w = noise(3, 9, 100)
    for settings in ({"bits": 2}, {"bits": 4, "scheme": "affine"}, {"bits": 8, "group_size": 0}):
        whole = aq.kernels.quantize_rows(w, **settings)
        y, x = aq.kernels.dequantize_rows(whole), noise(4, 2, 100)
        products = aq.kernels.matvec(whole, x)
        for rows in (slice(2, 7), slice(None), slice(-1, None), slice(4, 4), slice(7, 2)):
            part = whole[rows]
            assert len(part) == part.rows == len(y[rows]) and part.cols == 100
            assert aq.kernels.dequantize_rows(part).tobytes() == y[rows].tobytes()
            assert np.allclose(aq.kernels.matvec(part, x), products[:, rows], rtol=1e-4, atol=1e-5)
        assert part.quality is None and whole.quality.cosine > 0.7
        with pytest.raises(aq.ArgumentError, match="step of 2"):
            whole[::2]
        with pytest.raises(TypeError, match="slice"):
            whole[3]
    w = noise(5, 4, 6).astype("<f2")
    file, _ = aq.quantize_to_bytes({"kept.weight": w}, keep=["*"])
    kept = aq.open(file)["kept.weight"].tiles[0].matrix
    assert kept.format == "kept" and kept.dtype == "f16"
    assert aq.kernels.dequantize_rows(kept[1:3]).tolist() == w[1:3].tolist()


def test_kernels_take_tensors_of_several_tiles(root):
    model = aq.open(root / "tests" / "data" / "transformed.parquet")
    tensor = model["tiles"]
    assert len(tensor.matrices) == 3
    x = noise(5, 4, tensor.info.cols)
    for vectors in (x, x[0]):
        exact = tensor.matvec(vectors)
        assert aq.kernels.matvec(tensor, vectors).tobytes() == exact.tobytes()
        int8 = aq.kernels.matvec_int8(tensor, aq.kernels.quantize_vectors(tensor, vectors))
        assert int8.shape == exact.shape and aq.kernels.compare(exact, int8).cosine > 0.999
    for dtype in ("f32", "f16", "bf16"):
        decoded = aq.kernels.dequantize_rows(tensor, dtype=dtype)
        assert decoded.tobytes() == tensor.dequantize(dtype).tobytes()
    out = bytearray(tensor.info.rows * tensor.info.cols * 4)
    aq.kernels.dequantize_rows(tensor, out=out)
    assert out == tensor.dequantize().tobytes()
    # Vectors of bytes fit the matrices that were treated alike, and no others.
    other = model["plain"]
    if other.info.cols == tensor.info.cols:
        with pytest.raises(aq.ArgumentError, match="another"):
            aq.kernels.matvec_int8(other, aq.kernels.quantize_vectors(tensor, x))
    both = model["both"].tiles[0].matrix
    bare = dataclasses.replace(both, input_scale=None, rotation=None)
    vectors = noise(6, 2, both.cols)
    with pytest.raises(aq.ArgumentError, match="another input scale or rotation"):
        aq.kernels.matvec_int8(bare, aq.kernels.quantize_vectors(both, vectors))
    there = aq.kernels.transform_vectors(both, vectors)
    assert aq.kernels.matvec(bare, there).tobytes() == aq.kernels.matvec(both, vectors).tobytes()


def test_settings_are_those_of_the_library():
    yaml = aq.Config().to_yaml()
    keys = re.findall(r"^(\w+):", yaml, flags=re.MULTILINE)
    assert len(keys) > 20
    short = {"bits": "bit_width", "profile": "deployment_profile", "keep": "rules"}
    assert set(aq.Settings.__annotations__) == set(keys) | {"rules", "calibration"} | set(short)
    assert tuple(aq.Config().keys()) == tuple(k for k in aq.Settings.__annotations__ if k not in short)
    for key in aq.Config().keys():
        aq.Config()[key]


# python -m arrowquant


def test_module_prints_what_the_command_line_prints(module, cli, packed, small):
    for args in [
        ["plan", small, "--bits", "2", "--keep", "*.conv.*", "--rule", "*mlp*=bits:8", "--json"],
        ["inspect", packed, "--json"],
        ["verify", packed, "--json"],
        ["verify", packed, "--against", small, "--min-cosine", "0.9", "--json"],
    ]:
        ours, theirs = json.loads(module(*args).stdout), json.loads(cli(*args).stdout)
        assert ours == theirs and ours["tensors"], args


def test_module_prints_for_people(module, packed, small, tmp_path):
    planned = module("plan", small, "--bits", "2").stdout
    assert re.search(r"blocks\.0\.mlp\.weight +int2 +128 .* default", planned)
    inspected = module("inspect", packed).stdout
    assert re.search(r"blocks\.0\.mlp\.weight +bf16 +int4 +40x64 +64 +4\.250 +0\.99\d+", inspected)
    assert "7 tensors verified" in module("verify", packed, "--against", small).stdout
    failed = module("verify", packed, "--against", small, "--min-cosine", "1", check=False)
    assert failed.returncode == 1 and "FAILED blocks.0.mlp.weight: cosine" in failed.stdout
    output = tmp_path / "m.parquet"
    done = module("quantize", small, output, "--keep", "nothing.*")
    assert f"{output}: {output.stat().st_size} of" in done.stdout
    assert done.stderr == "warning: rule nothing.*=keep matches no tensor\n"
    assert module("--version").stdout.strip() == aq.__version__


def test_module_writes_reports_and_decodes(module, cli, small, tmp_path):
    report = tmp_path / "report.json"
    output = tmp_path / "m.parquet"
    done = module("quantize", small, output, "--report", report, "--quiet", "--threads", "1")
    assert done.stdout == done.stderr == ""
    found = json.loads(report.read_text())
    assert found["output_bytes"] == output.stat().st_size and len(found["tensors"]) == 7
    page = tmp_path / "page.html"
    both = ["--report", page, "--report", report, "--quiet", "--threads", "1"]
    module("quantize", small, output, *both)
    assert held_in(page.read_text(encoding="utf-8")) == json.loads(report.read_text())
    refused = module("quantize", small, output, "--report", page, "--report", page, check=False)
    assert refused.returncode == 2 and "is given twice" in refused.stderr
    ours, theirs = (tmp_path / name for name in ["ours.safetensors", "theirs.safetensors"])
    module("dequantize", output, ours, "--dtype", "f16", "--threads", "1")
    cli("dequantize", output, theirs, "--dtype", "f16")
    assert ours.read_bytes() == theirs.read_bytes()


def test_module_says_what_is_wrong(module, small, packed, tmp_path):
    output = tmp_path / "m.parquet"
    for args, code, message in [
        ([], 2, "required"),
        (["fly"], 2, "fly"),
        (["quantize", small, output, "--bits", "3"], 2, "error: --bits: invalid value '3' (expected 2, 4 or 8)"),
        (["quantize", small, output, "--plan", "p", "--bits", "4"], 2, "--plan"),
        (["quantize", small, output, "--report", output], 2, "--report"),
        (["quantize", small, tmp_path / "m.bin"], 2, "does not end in .parquet"),
        (["quantize", "none.safetensors", output], 1, "error: none.safetensors: cannot open"),
        (["verify", packed, "--min-cosine", "0.5"], 2, "--against"),
        (["verify", packed, "--min-cosine", "2", "--against", small], 2, "--min-cosine"),
        (["inspect", small], 1, "not a Parquet file"),
    ]:
        done = module(*args, check=False)
        assert done.returncode == code and message in done.stderr, (args, done.stderr)
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_module_takes_settings_from_file_and_environment(module, small, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("bit_width: 2\nmethod: minmax\n")
    env = {**os.environ, "AQ_BIT_WIDTH": "8", "AQ_SCHEME": "affine"}
    args = ["plan", small, "--config", file, "--scheme", "symmetric", "--json"]
    config = json.loads(module(*args, env=env).stdout)["config"]
    assert (config["bit_width"], config["method"], config["scheme"]) == (8, "minmax", "symmetric")


# The C interface


def test_declared_functions_and_constants_are_those_of_the_header(root):
    header = (root / "include" / "arrowquant.h").read_text()
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    functions = set(re.findall(r"\nAQ_API [^;(]*?\b(aq_\w+)\(", code))
    assert functions == set(_library.FALLIBLE) | set(_library.PLAIN)
    fallible = set(re.findall(r"aq_status (aq_\w+)\(", code))
    assert fallible == set(_library.FALLIBLE)
    numbers = {name: int(n) for name, n in re.findall(r"#define AQ_(\w+) (\d+)", code)}
    tables = {
        "FORMAT": _library.FORMATS, "SCHEME": _library.SCHEMES, "METHOD": _library.METHODS,
        "DTYPE": _library.DTYPES,
    }
    for prefix, names in tables.items():
        wanted = {
            name[len(prefix) + 1 :].lower(): n
            for name, n in numbers.items()
            if name.startswith(f"{prefix}_") and name != f"{prefix}_DEFAULT"
        }
        assert names == wanted
    assert _library.GAINS == {
        "auto": numbers["GAIN_DEFAULT"], "unit": numbers["GAIN_UNIT"], "lsq": numbers["GAIN_LSQ"],
    }
    assert _library.ABI_VERSION == numbers["ABI_VERSION"]
    kinds = [aq.ConfigError, aq.IOFailure, aq.FileError, aq.TensorError, aq.PlanError]
    kinds += [aq.ChecksumError, aq.Cancelled, aq.InternalError, aq.ArgumentError]
    names = "CONFIG IO FILE TENSOR PLAN CHECKSUM CANCELLED INTERNAL ARGUMENT".split()
    assert [numbers[f"ERROR_{name}"] for name in names] == [kind.code for kind in kinds]
    assert _library.aq_error.message.size == numbers["MESSAGE_SIZE"]

"""GGUF, compared with the package `gguf`."""

import json

import gguf
import ml_dtypes
import numpy as np
import pytest

import arrowquant as aq
from common import noise, read_safetensors

KINDS = gguf.GGMLQuantizationType
PACKED = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
]


def write_gguf(path, tensors, shapes={}, keys={}, **options):
    """`tensors` are names with a type of GGUF and its bytes, one row of them for each row of weights;
    `shapes` are true ones of some."""
    writer = gguf.GGUFWriter(path, "flux", **options)
    for key, value in keys.items():
        writer.add_string(f"flux.{key}", value)
    writer.add_array("flux.axes", [16, 56, 56])
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(kind, values):
    """Returns the tensor in the form that `write_gguf` takes."""
    return kind, gguf.quants.quantize(values, kind)


def random_blocks(seed, kind, rows, blocks):
    """Makes random bits, so that factors have any size, including subnormal, infinite and NaN."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    return kind, np.random.default_rng(seed).integers(0, 256, (rows, blocks * size), dtype="u1")


@np.errstate(all="ignore")
def decoded(kind, data):
    return gguf.quants.dequantize(data, kind).astype("<f4")


def assert_same_bits(found, expected, name=""):
    """Whether values are equal; all NaNs are equal."""
    assert found.shape == expected.shape, name
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan, name)
    np.testing.assert_array_equal(found.view("<u4")[~nan], expected.view("<u4")[~nan], name)


@pytest.mark.parametrize("kind", PACKED)
def test_every_packed_type_is_what_the_package_gguf_reads(tmp_path, cli, kind):
    kind = KINDS[kind]
    tensors = {
        "many.weight": random_blocks(1, kind, 96, 11),
        "one.weight": random_blocks(2, kind, 1, 1),
        "bias": random_blocks(3, kind, 1, 3),
    }
    tensors["bias"] = (kind, tensors["bias"][1][0])
    expected = {name: decoded(*tensor) for name, tensor in tensors.items()}
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors)
    assert [(t.name, t.dtype, t.shape) for t in aq.Source.open(path)] == [
        (name, "f32", values.shape) for name, values in expected.items()
    ]
    # Kept, they come out as they went in: from Python over the C API, and by the command line.
    aq.quantize(path, tmp_path / "kept.parquet", keep=["*"])
    done = cli("quantize", path, tmp_path / "cli.parquet", "--keep", "*")
    assert done.returncode == 0, done.stderr
    done = cli("dequantize", tmp_path / "cli.parquet", tmp_path / "cli.safetensors", "--dtype", "f32")
    assert done.returncode == 0, done.stderr
    by_cli = read_safetensors(tmp_path / "cli.safetensors")
    with aq.open(tmp_path / "kept.parquet") as model:
        for name, values in expected.items():
            assert_same_bits(model[name].dequantize(), values, name)
            assert_same_bits(by_cli[name], values, name)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_types_are_quantized_as_their_values(tmp_path, kind):
    kind = KINDS[kind]
    if kind in (KINDS.Q4_0, KINDS.Q4_1, KINDS.Q5_0, KINDS.Q5_1, KINDS.Q8_0):
        data = gguf.quants.quantize(noise(1, 64, 768), kind)
    else:
        # The package has no encoder of these. Bit 14 of a factor off, it is less than 2.
        _, data = random_blocks(1, kind, 64, 768 // gguf.GGML_QUANT_SIZES[kind][0])
        data.reshape(64, -1, gguf.GGML_QUANT_SIZES[kind][1])[..., 1::2] &= 0xBF
    values = decoded(kind, data)
    assert np.isfinite(values).all()
    write_gguf(tmp_path / "m.gguf", {"w": (kind, data)})
    found = tmp_path / "m.parquet"
    aq.quantize(tmp_path / "m.gguf", found, bits=4)
    expected, _ = aq.quantize_to_bytes({"w": values}, bits=4)
    with aq.open(found) as found, aq.open(expected) as expected:
        assert found.verify(tmp_path / "m.gguf")
        (tile,), (wanted,) = found["w"].tiles, expected["w"].tiles
        for plane in ("codes", "scales"):
            assert bytes(getattr(tile, plane)) == bytes(getattr(wanted, plane))


def test_plain_types_and_keys(tmp_path):
    values = {
        "a.weight": noise(1, 48, 192),
        "b.weight": noise(2, 6, 5, 7, 2, 2).astype("<f2"),
        "c.norm.weight": noise(3, 64),
    }
    tensors = {name: (None, data) for name, data in values.items()}
    values["d.weight"] = noise(4, 9, 64).astype(ml_dtypes.bfloat16)
    tensors["d.weight"] = (KINDS.BF16, values["d.weight"].view("u1"))
    write_gguf(tmp_path / "m.gguf", tensors, keys={"note": "ü"})
    assert [t.dtype for t in aq.Source.open(tmp_path / "m.gguf")] == ["f32", "f16", "f32", "bf16"]
    aq.quantize(tmp_path / "m.gguf", tmp_path / "kept.parquet", keep=["*"])
    with aq.open(tmp_path / "kept.parquet") as model:
        for name, data in values.items():
            assert_same_bits(model[name].dequantize(), data.astype("<f4"), name)
        metadata = json.loads(model.metadata["arrowquant.source_metadata"])
        assert metadata["flux.note"] == "ü" and metadata["general.architecture"] == "flux"
        assert "flux.axes" not in metadata


def test_tensors_have_their_true_shapes(tmp_path):
    conv, linear = noise(1, 64, 32, 3, 3).astype("<f2"), noise(2, 40, 96)
    kind, data = quantized(KINDS.Q5_1, linear.reshape(-1, 32))
    tensors = {"conv.weight": (None, conv.reshape(-1, 256)), "linear.weight": (kind, data)}
    shapes = {"conv.weight": conv.shape, "linear.weight": linear.shape}
    write_gguf(tmp_path / "m.gguf", tensors, shapes)
    aq.quantize(tmp_path / "m.gguf", tmp_path / "kept.parquet", keep=["*"])
    with aq.open(tmp_path / "kept.parquet") as model:
        assert_same_bits(model["conv.weight"].dequantize(), conv.astype("<f4"))
        assert_same_bits(model["linear.weight"].dequantize(), decoded(kind, data).reshape(40, 96))
        assert "orig_shape" not in model.metadata["arrowquant.source_metadata"]


@pytest.mark.parametrize("given", ["folder", 1, 3])
def test_split_models_are_read_whole(tmp_path, given):
    tensors = {f"{i}.weight": random_blocks(i, KINDS.Q4_K, 8, 2) for i in range(5)}
    write_gguf(tmp_path / "m.gguf", tensors, split_max_tensors=2)
    paths = sorted(tmp_path.glob("*.gguf"))
    assert [path.name for path in paths] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    path = tmp_path if given == "folder" else paths[given - 1]
    kept, _ = aq.quantize_to_bytes(aq.Source.open(path), keep=["*"])
    with aq.open(kept) as model:
        assert sorted(model) == sorted(tensors)
        for name, tensor in tensors.items():
            assert_same_bits(model[name].dequantize(), decoded(*tensor), name)
    paths[1].unlink()
    with pytest.raises(aq.Error, match=r"m-00002-of-00003\.gguf: is missing"):
        aq.Source.open(path)


def test_other_types_are_refused_by_name(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"w": quantized(KINDS.TQ2_0, noise(1, 4, 256))})
    with pytest.raises(aq.Error, match=r"m\.gguf: tensor 'w': it is TQ2_0, which is not supported .*Q8_0"):
        aq.Source.open(tmp_path / "m.gguf")

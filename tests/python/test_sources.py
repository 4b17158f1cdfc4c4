"""Where weights come from, against the packages that define the formats."""

import json

import duckdb
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrowquant as aq
from common import NUMPY, noise, read_safetensors, to_bf16, write_safetensors

F8 = {
    "f8_e4m3": ml_dtypes.float8_e4m3fn,
    "f8_e5m2": ml_dtypes.float8_e5m2,
    "f8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "f8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}


# f8


@pytest.mark.parametrize("dtype", F8)
def test_every_f8_is_what_ml_dtypes_says(tmp_path, dtype):
    codes = np.arange(256, dtype="u1").reshape(2, 128)
    values = codes.view(F8[dtype]).astype("<f4")
    path = write_safetensors(tmp_path / "m.safetensors", {"w": (dtype.upper(), codes)})
    aq.quantize(path, tmp_path / "m.parquet", on_nonfinite="keep")
    with aq.open(tmp_path / "m.parquet") as model:
        assert model["w"].info.dtype == dtype
        np.testing.assert_array_equal(model["w"].dequantize(), values)
        halves = model["w"].dequantize("f16").astype("<f4")
        np.testing.assert_array_equal(halves, values)


@pytest.mark.parametrize("dtype", F8)
def test_f8_is_quantized_as_its_values(tmp_path, dtype):
    narrow = noise(1, 40, 72).astype(F8[dtype])
    wide = narrow.astype(ml_dtypes.bfloat16)
    found, _ = aq.quantize_to_bytes({"w": narrow}, bits=4, scheme="affine")
    expected, _ = aq.quantize_to_bytes({"w": wide}, bits=4, scheme="affine")
    with aq.open(found) as found, aq.open(expected) as expected:
        (found,), (expected,) = found["w"].tiles, expected["w"].tiles
        for plane in ("codes", "scales", "biases"):
            assert bytes(getattr(found, plane)) == bytes(getattr(expected, plane))


def test_decoded_f8_becomes_bf16_and_kept_f8_stays(tmp_path):
    weights = noise(1, 8, 64).astype(ml_dtypes.float8_e4m3fn)
    source = {"w": weights, "norm.weight": weights[0]}
    packed, _ = aq.quantize_to_bytes(source, bits=8)
    back = tmp_path / "back.safetensors"
    with aq.open(packed) as model:
        model.dequantize(back)
        decoded = model["w"].dequantize("bf16").view("u2")
    tensors = read_safetensors(back)
    np.testing.assert_array_equal(tensors["w"], decoded)
    assert tensors["w"].dtype == NUMPY["BF16"]
    np.testing.assert_array_equal(tensors["norm.weight"], weights[0].view("u1"))


# Parquet


def rows_of_a_table():
    return {
        "a.weight": ("f32", noise(1, 48, 200)),
        "b.weight": ("bf16", to_bf16(noise(2, 40, 64))),
        "c.weight": ("F16", noise(3, 8, 4, 3, 3).astype("<f2")),
        "same.weight": ("F16", noise(3, 8, 4, 3, 3).astype("<f2")),
        "ids": ("I64", np.arange(12, dtype="<i8").reshape(1, 12)),
        "empty": ("f32", np.zeros((0, 16), "<f4")),
        "scalar": ("f32", np.array(0.5, "<f4")),
    }


def arrow_table(shape_type, data_type=pa.binary()):
    rows = rows_of_a_table()
    return pa.table({
        "note": pa.array(["not of interest"] * len(rows)),
        "name": list(rows),
        "shape": pa.array([list(data.shape) for _, data in rows.values()], shape_type),
        "dtype": [dtype for dtype, _ in rows.values()],
        "data": pa.array([data.tobytes() for _, data in rows.values()], data_type),
    }).replace_schema_metadata({"architecture": "DiT"})


def check_table(path, tmp_path):
    rows = rows_of_a_table()
    source = aq.Source.open(path)
    assert [(t.name, t.dtype, t.shape) for t in source] == [
        (name, dtype.lower(), data.shape) for name, (dtype, data) in rows.items()
    ]
    kept = tmp_path / "kept.parquet"
    aq.quantize(source, kept, keep=["*"])
    aq.quantize(path, tmp_path / "int4.parquet", bits=4)
    with aq.open(kept) as model, aq.open(tmp_path / "int4.parquet") as quantized:
        for name, (_, data) in rows.items():
            found = b"".join(bytes(tile.codes) for tile in model[name].tiles)
            assert found == data.tobytes(), name
        assert quantized.verify(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False, ["name", "dtype"]])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_tables_of_pyarrow(tmp_path, compression, dictionary, version):
    path = tmp_path / "m.parquet"
    table = arrow_table(pa.list_(pa.int64()))
    pq.write_table(
        table, path, compression=compression, use_dictionary=dictionary,
        data_page_version=version, row_group_size=3,
    )
    check_table(path, tmp_path)


def test_tables_of_pyarrow_with_other_types(tmp_path):
    path = tmp_path / "m.parquet"
    pq.write_table(arrow_table(pa.large_list(pa.int32()), pa.large_binary()), path)
    check_table(path, tmp_path)
    with aq.open(tmp_path / "kept.parquet") as model:
        assert json.loads(model.metadata["arrowquant.source_metadata"])["architecture"] == "DiT"


@pytest.mark.parametrize("codec", ["uncompressed", "snappy", "zstd"])
def test_tables_of_duckdb(tmp_path, codec):
    path = tmp_path / "m.parquet"
    table = arrow_table(pa.list_(pa.int64()))
    with duckdb.connect() as connection:
        connection.register("weights", table)
        connection.execute(f"COPY (FROM weights) TO '{path}' (FORMAT parquet, CODEC '{codec}')")
    check_table(path, tmp_path)


def test_a_codec_that_is_not_read_is_an_error(tmp_path):
    pq.write_table(arrow_table(pa.list_(pa.int64())), tmp_path / "m.parquet", compression="gzip")
    with pytest.raises(aq.Error, match=r"m\.parquet: .*GZIP"):
        aq.Source.open(tmp_path / "m.parquet")


# Pipelines


def test_components_are_left_out(tmp_path, module):
    for component in ("transformer", "vae"):
        (tmp_path / component).mkdir()
        weights = {"w.weight": ("BF16", to_bf16(noise(1, 8, 64)))}
        write_safetensors(tmp_path / component / "diffusion_pytorch_model.safetensors", weights)
    index = {"transformer": ["diffusers", "T"], "vae": ["diffusers", "V"], "text": ["transformers", "E"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(aq.FileError, match="component text is missing"):
        aq.Source.open(tmp_path)
    source = aq.Source.open(tmp_path, without=["text"])
    assert [tensor.name for tensor in source] == ["transformer.w.weight", "vae.w.weight"]
    less = aq.Source.open(tmp_path, without=("vae", "text"))
    assert [tensor.name for tensor in less] == ["transformer.w.weight"]
    with pytest.raises(aq.ConfigError, match="'unet' is not a component of .* transformer, vae, text$"):
        aq.Source.open(tmp_path, without=["unet"])
    with pytest.raises(aq.ConfigError, match="is not a pipeline"):
        aq.Source.open(tmp_path / "vae", without=["vae"])
    with pytest.raises(TypeError, match="a sequence of names"):
        aq.Source.open(tmp_path, without="vae")

    packed = tmp_path / "out.parquet"
    flags = ["--without", "text", "--without", "vae"]
    module("quantize", tmp_path, packed, "--quiet", *flags)
    with aq.open(packed) as model:
        assert list(model) == ["transformer.w.weight"]
    assert "1 tensors verified" in module("verify", packed, "--against", tmp_path, *flags).stdout
    assert "transformer.w.weight" in module("plan", tmp_path, *flags).stdout

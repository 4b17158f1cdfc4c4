"""Where weights come from, against the packages that define the formats."""

import ml_dtypes
import numpy as np
import pytest

import arrowquant as aq
from common import NUMPY, noise, read_safetensors, write_safetensors

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
        decoded = model["w"].dequantize("bf16")
    tensors = read_safetensors(back)
    np.testing.assert_array_equal(tensors["w"], decoded)
    assert tensors["w"].dtype == NUMPY["BF16"]
    np.testing.assert_array_equal(tensors["norm.weight"], weights[0].view("u1"))

"""Quantized activations equal, bit for bit, a numpy implementation of the header's description."""

import numpy as np
import pytest

import arrowquant as aq
from common import from_bf16, noise, to_bf16

F32 = np.float32


def dynamic(x, bits, group_size):
    """Returns values and scales of f32 [rows, cols]."""
    top = F32(127 if bits == 8 else 7)
    rows, cols = x.shape
    starts = range(0, cols, group_size or max(cols, 1))
    values, scales = np.zeros(x.shape, np.int8), np.zeros((rows, len(starts)), F32)
    for g, start in enumerate(starts):
        part = np.s_[:, start : start + (group_size or cols)]
        largest = np.abs(x[part]).max(axis=1)
        zero = largest <= F32(1e-30)
        scales[:, g] = np.where(zero, F32(0), largest / top)
        inverse = np.where(zero, F32(0), top / np.where(zero, F32(1), largest)).astype(F32)
        values[part] = np.rint(x[part] * inverse[:, None]).astype(np.int8)
    return values, scales


def static(x, bits, scale, zero_point):
    codes = np.rint(x * (F32(1) / F32(scale)) + F32(zero_point))
    return np.clip(codes, 0, 2**bits - 1).astype(np.uint8)


def inputs(rows, cols):
    """Returns the values to pass, the dtype to name, and their f32 values."""
    x = noise(rows * 1000 + cols, rows, cols) * F32(30)
    x[rows // 2] = 0
    half = x.astype("<f2")
    yield x, None, x
    yield half, None, half.astype(F32)
    yield to_bf16(x), "bf16", from_bf16(to_bf16(x))


SHAPES = [(1, 1), (3, 16), (5, 31), (4, 64), (2, 129), (3, 1000), (1, 4099), (0, 5)]


@pytest.mark.parametrize("rows, cols", SHAPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_activations_are_quantized_as_said(rows, cols, bits):
    for x, dtype, exact in inputs(rows, cols) if rows else [(np.zeros((0, 5), F32), None, np.zeros((0, 5), F32))]:
        for group_size in (0, 16, 64, 1024):
            values, scales = aq.kernels.quantize_activations(x, bits, group_size, dtype=dtype)
            wanted, wanted_scales = dynamic(exact, bits, group_size)
            assert values.dtype == np.int8 and scales.dtype == F32
            assert values.shape == x.shape and scales.shape == wanted_scales.shape
            assert values.tobytes() == wanted.tobytes()
            assert scales.tobytes() == wanted_scales.tobytes()
        for scale, zero_point in [(0.01, 100), (0.37, 7.25), (3.0, -1.5)]:
            values, none = aq.kernels.quantize_activations(
                x, bits, scale=scale, zero_point=zero_point, dtype=dtype
            )
            assert none is None and values.dtype == np.uint8 and values.shape == x.shape
            assert values.tobytes() == static(exact, bits, scale, zero_point).tobytes()


@pytest.mark.parametrize("rows, cols", [(3, 31), (2, 200)])
def test_columns_are_divided_first(rows, cols):
    divisors = (np.abs(noise(9, cols)) + F32(0.05)).astype(F32)
    for x, dtype, exact in inputs(rows, cols):
        divided = exact / divisors
        values, scales = aq.kernels.quantize_activations(x, 8, 32, input_scale=divisors, dtype=dtype)
        wanted, wanted_scales = dynamic(divided, 8, 32)
        assert values.tobytes() == wanted.tobytes()
        assert scales.tobytes() == wanted_scales.tobytes()
        fixed = aq.kernels.quantize_activations(
            x, 4, scale=0.5, zero_point=7.5, input_scale=divisors, dtype=dtype
        )
        assert fixed.values.tobytes() == static(divided, 4, 0.5, 7.5).tobytes()


def test_the_error_is_half_a_step():
    x = noise(4, 7, 300)
    values, scales = aq.kernels.quantize_activations(x, group_size=128)
    steps = np.repeat(scales, 128, axis=1)[:, :300]
    assert (np.abs(values * steps - x) <= steps * F32(0.500_01)).all()
    assert (np.abs(values).reshape(7, 300)[:, :128].max(axis=1) == 127).all()


def test_shapes_are_kept():
    x = noise(2, 24).reshape(2, 3, 4)
    values, scales = aq.kernels.quantize_activations(x)
    assert values.shape == (2, 3, 4) and scales.shape == (2, 3, 1)
    flat = aq.kernels.quantize_activations(x.reshape(6, 4))
    assert values.tobytes() == flat.values.tobytes()
    one = aq.kernels.quantize_activations(x[0, 0])
    assert one.values.shape == (4,) and one.scales.shape == (1,)
    assert aq.kernels.quantize_activations(np.zeros((3, 0), F32)).scales.shape == (3, 0)


def test_wrong_activations_are_refused():
    x = noise(1, 3, 20)
    bad = x.copy()
    bad[2, 17] = np.inf
    for grid in ({}, {"group_size": 16}, {"scale": 1.0}, {"input_scale": np.ones(20, F32)}):
        with pytest.raises(aq.TensorError, match="row 2, column 17 is inf"):
            aq.kernels.quantize_activations(bad, **grid)
    ones = np.ones(20, F32)
    refused = [
        (lambda: aq.kernels.quantize_activations(x, 2), "bits: 2"),
        (lambda: aq.kernels.quantize_activations(x, 0), "bits: 0"),
        (lambda: aq.kernels.quantize_activations(x, group_size=17), "group_size is 17"),
        (lambda: aq.kernels.quantize_activations(x, group_size=-16), "group_size: -16"),
        (lambda: aq.kernels.quantize_activations(x, group_size=16, scale=1.0), "static scale"),
        (lambda: aq.kernels.quantize_activations(x, scale=0), "scale is 0"),
        (lambda: aq.kernels.quantize_activations(x, scale=-1.0), "scale is no normal number"),
        (lambda: aq.kernels.quantize_activations(x, zero_point=3), "needs a scale"),
        (lambda: aq.kernels.quantize_activations(x, scale=1.0, zero_point=np.nan), "zero_point"),
        (lambda: aq.kernels.quantize_activations(x, input_scale=ones[:5]), "input_scale has length 5"),
        (lambda: aq.kernels.quantize_activations(x, input_scale=-ones), "input_scale has"),
        (lambda: aq.kernels.quantize_activations(x, input_scale=ones.astype("f8")), "must be f32"),
        (lambda: aq.kernels.quantize_activations(x.astype("f8")), "dtype of x"),
        (lambda: aq.kernels.quantize_activations(x, dtype="f16"), "x has shape"),
        (lambda: aq.kernels.quantize_activations(np.array(1, F32)), "x has shape"),
        (lambda: aq.kernels.quantize_activations(x[:, ::2]), "C-contiguous"),
    ]
    for call, text in refused:
        with pytest.raises(aq.ArgumentError, match=text):
            call()

"""Quantizing with a calibration, compared with plain numpy."""

import numpy as np
import pytest

import arrowquant as aq
import reference
from common import unpack, write_safetensors

COLS, ROWS = 96, 40


def inputs(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Makes correlated channels of different sizes."""
    own, common = rng.standard_normal((rows, COLS)), rng.standard_normal((rows, 1))
    return ((1 + np.arange(COLS) % 7) * (0.4 * own + common)).astype("f4")


def descend(w, codes, h, scales, biases, bits, group, damping=0.01):
    """Does two passes of coordinate descent over the codes, by falling importance."""
    h = h + damping * np.diag(h).mean() * np.eye(len(h))
    scales, biases = reference.spread(scales, group, COLS), reference.spread(biases, group, COLS)
    codes = codes.copy()
    order = np.argsort(-np.diag(h), kind="stable")
    for j in [*order, *order]:
        errors = w - (codes * scales + biases)
        others = errors @ h[:, j] - errors[:, j] * h[j, j]
        target = w[:, j] + others / h[j, j]
        codes[:, j] = reference.round_to_codes(target, scales[:, j], biases[:, j], bits)
    return codes


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_codes_and_errors_are_those_of_plain_gptq(tmp_path, bits, scheme):
    rng = np.random.default_rng(bits)
    w = (rng.standard_normal((ROWS, COLS)) * 0.1).astype("f4")
    x = inputs(rng, 500)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"layer.weight": w})
    calibration = aq.Calibration(timesteps=10, bins=10, hessian_groups=10)
    calibration.observe("layer", 4, x)
    packed, report = aq.quantize_to_bytes(
        path, bits=bits, scheme=scheme, group_size=32, gain="lsq", scale_dtype="f32",
        calibration=calibration, enable_spatial=False,
    )
    h = x.astype("f8").T @ x.astype("f8") / len(x)
    with aq.open(packed) as model:
        view = model["layer.weight"].tiles[0]
        codes = unpack(bytes(view.codes), bits, ROWS, COLS).astype("f8")
        scales = np.frombuffer(bytes(view.scales), "<f4").reshape(ROWS, -1).astype("f8")
        biases = -reference.ZERO_POINT[bits] * scales
        if scheme == "affine":
            biases = np.frombuffer(bytes(view.biases), "<f4").reshape(ROWS, -1).astype("f8")
        decoded = model["layer.weight"].dequantize().reshape(ROWS, COLS).astype("f8")
    plain = reference.gptq(w, h, scales, biases, bits, 32)
    better = descend(w.astype("f8"), plain, h, scales, biases, bits, 32)
    # The better of both, row by row, as the engine has it; ties may fall otherwise in f32.
    error = lambda q: (((w - q) @ h) * (w - q)).sum(1)
    errors = [error(reference.decode(q, scales, biases, 32)) for q in (plain, better)]
    expected = np.where((errors[1] < errors[0])[:, None], better, plain)
    same = (codes == expected).all(axis=1).mean()
    assert same > 0.9, same
    assert report["layer.weight"].output_error == pytest.approx(
        reference.output_error(w.astype("f8"), decoded, h), rel=1e-3
    )
    # Far better than rounding to the same grids.
    rounded = reference.round_to_codes(
        w.astype("f8"), reference.spread(scales, 32, COLS), reference.spread(biases, 32, COLS), bits
    )
    assert error(decoded).sum() < 0.5 * error(reference.decode(rounded, scales, biases, 32)).sum()


def test_unit_gain_restores_the_amplitude_of_outputs(tmp_path):
    rng = np.random.default_rng(3)
    w, x = (rng.standard_normal((ROWS, COLS)) * 0.1).astype("f4"), inputs(rng, 500)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"layer.weight": w})
    calibration = aq.Calibration(timesteps=10, bins=10, hessian_groups=10)
    calibration.observe("layer", 4, x)
    h = x.astype("f8").T @ x.astype("f8") / len(x)
    h += 0.01 * np.diag(h).mean() * np.eye(COLS)
    packed, _ = aq.quantize_to_bytes(path, bits=2, calibration=calibration, enable_spatial=False)
    with aq.open(packed) as model:
        decoded = model["layer.weight"].dequantize().reshape(ROWS, COLS).astype("f8")
    # What is left to restore, to the rounding of f16 scales.
    assert reference.unit_gain(w.astype("f8"), decoded, h) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_hessian_of_few_samples_does(tmp_path, samples):
    rng = np.random.default_rng(5)
    w = rng.standard_normal((ROWS, COLS)).astype("f4")
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"layer.weight": w})
    calibration = aq.Calibration(timesteps=10, bins=10, hessian_groups=10)
    x = inputs(rng, samples)
    calibration.observe("layer", 4, x)
    packed, report = aq.quantize_to_bytes(path, bits=2, calibration=calibration, enable_spatial=False)
    with aq.open(packed) as model:
        decoded = model["layer.weight"].dequantize().reshape(ROWS, COLS)
    assert np.isfinite(decoded).all()
    assert report["layer.weight"].output_error < 0.01

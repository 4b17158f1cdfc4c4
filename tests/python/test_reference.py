"""The reference implementation is right: compared with figures computed by hand."""

import numpy as np
import pytest

import reference
from common import noise

BITS, GROUP = 2, 32


@pytest.fixture(scope="module")
def layer():
    """Weights, and inputs whose channels are correlated and of different sizes."""
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((400, 96)) @ rng.standard_normal((96, 96)) * rng.uniform(0.1, 3, 96)
    return noise(6, 24, 96).astype(np.float64), inputs


def decoded_by(w, h, **options):
    scales, biases = reference.affine_grid(w, BITS, GROUP)
    codes = reference.gptq(w, h, scales, biases, BITS, GROUP, **options)
    return reference.decode(codes, scales, biases, GROUP)


def nearest(w):
    scales, biases = (reference.spread(p, GROUP, w.shape[1]) for p in reference.affine_grid(w, BITS, GROUP))
    return reference.round_to_codes(w, scales, biases, BITS) * scales + biases


@pytest.mark.parametrize("act_order", [False, True])
def test_without_correlations_gptq_rounds_to_nearest(layer, act_order):
    w, inputs = layer
    h = np.diag((inputs**2).sum(axis=0))
    assert np.array_equal(decoded_by(w, h, act_order=act_order), nearest(w))


def test_gptq_makes_up_for_the_error_of_earlier_columns():
    # The error e of the first column moves the second's weight to where the sum of both is least
    # wrong: h12 e + h22 (w2 - y2) = 0.
    h = np.array([[4.0, 1.5], [1.5, 2.0]])
    w = np.array([[0.4, 0.1], [0.6, 0.2], [-0.4, 0.9]])
    scales, biases = np.ones((3, 1)), np.zeros((3, 1))
    codes = reference.gptq(w, h, scales, biases, 8, 2, damping=0, act_order=False)
    first = np.clip(np.rint(w[:, 0]), 0, 255)
    second = np.clip(np.rint(w[:, 1] + 1.5 / 2.0 * (w[:, 0] - first)), 0, 255)
    assert np.array_equal(codes, np.stack([first, second], axis=1))


def test_gptq_halves_the_output_error(layer):
    w, inputs = layer
    h = inputs.T @ inputs
    plain = reference.output_error(w, nearest(w), h)
    measured = ((inputs @ (w - nearest(w)).T) ** 2).sum() / ((inputs @ w.T) ** 2).sum()
    assert plain == pytest.approx(measured)
    assert reference.output_error(w, decoded_by(w, h), h) < plain / 2


@pytest.mark.parametrize("block", [1, 7, 200])
def test_blocks_change_nothing(layer, block):
    w, inputs = layer
    h = inputs.T @ inputs
    assert np.allclose(decoded_by(w, h, block=block), decoded_by(w, h))


def test_singular_hessians_and_dead_channels_succeed(layer):
    w, inputs = layer
    one = inputs[:1].copy()
    one[:, 10] = 0
    assert np.isfinite(decoded_by(w, one.T @ one, damping=0)).all()
    assert np.isfinite(decoded_by(w, np.zeros((96, 96)))).all()


def test_unit_gain_restores_amplitude(layer):
    w, inputs = layer
    h = inputs.T @ inputs
    y = decoded_by(w, h)
    y = y * reference.unit_gain(w, y, h)
    assert np.allclose(((w @ h) * y).sum(axis=1), ((w @ h) * w).sum(axis=1))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_changes_no_product(layer, alpha):
    w, inputs = layer
    inputs = inputs.copy()
    inputs[:, 3] = 0
    scales = reference.smoothing(np.abs(inputs).max(axis=0), w, alpha)
    assert scales[3] == 1
    assert np.allclose((inputs / scales) @ (w * scales).T, inputs @ w.T)


def test_half_smoothing_equalizes_channels(layer):
    w, inputs = layer
    largest = np.abs(inputs).max(axis=0)
    scales = reference.smoothing(largest, w, 0.5)
    assert np.allclose(largest / scales, np.abs(w * scales).max(axis=0))


def test_rotations_are_orthogonal_and_undone_by_themselves(layer):
    w, inputs = layer
    signs = np.where(np.arange(96) % 3 == 0, -1.0, 1.0)
    assert np.allclose(reference.hadamard(32) @ reference.hadamard(32).T, np.eye(32))
    turned = reference.rotated(w, 32, signs)
    assert not np.allclose(turned, w)
    assert np.allclose(reference.rotated(turned, 32) * signs, w)
    assert np.allclose(reference.rotated(inputs, 32, signs) @ turned.T, inputs @ w.T)

"""Smoothing folded into the weights of the example models, whose predictions do not change."""

import sys

import numpy as np
import pytest

import arrowquant as aq


@pytest.fixture(scope="module")
def networks(root):
    sys.path.insert(0, str(root / "benches"))
    try:
        import networks
    finally:
        sys.path.pop(0)
    return networks


class Digits:
    """The diffusion transformer, on noise."""

    name, sets, layers = "dit-digits", 12, 12

    def __init__(self, networks, models):
        self.networks = networks
        self.x = np.random.default_rng(1).standard_normal((6, 8, 8)).astype("f4")

    def outputs(self, path, observe=None):
        network = self.networks.Dit(self.networks.read_safetensors(path)[0])
        classes = np.arange(6)
        return np.stack([network.forward(self.x, t, classes, observe) for t in (10, 400, 950)])


class Text:
    """The masked language model, on held-out text."""

    name, sets, layers = "mdlm-python", 16, 28

    def __init__(self, networks, models):
        self.networks = networks
        held_out, _ = networks.read_safetensors(models / "mdlm-python-eval.safetensors")
        self.ids = np.where(held_out["mask_50"], networks.Mdlm.mask_id, held_out["ids"])[:4]

    def outputs(self, path, observe=None):
        network = self.networks.Mdlm(self.networks.read_safetensors(path)[0])
        return network.forward(self.ids, 500, observe)


@pytest.fixture(params=[Digits, Text], ids=lambda model: model.name)
def model(request, networks, models):
    made = request.param(networks, models)
    made.path = models / f"{made.name}.safetensors"
    made.calibration = aq.Calibration(hessian=False)
    made.expected = made.outputs(made.path, made.calibration.observe)
    return made


def difference(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_outputs_stay(model, alpha, tmp_path):
    path = tmp_path / "folded.safetensors"
    report = aq.fold(model.path, path, model.calibration, alpha=alpha, dtype="f32")
    assert (len(report.folded), report.not_folded, report.alpha) == (model.sets, {}, alpha)
    assert sum(len(one.layers) for one in report.folded) == model.layers
    # Something was there to scale.
    assert all(one.largest_scale > 1.2 * one.smallest_scale for one in report.folded)
    assert difference(model.outputs(path), model.expected) < 1e-5
    # Calibrated anew, inputs have what was left to them.
    again = aq.Calibration(hessian=False)
    model.outputs(path, again.observe)
    assert {layer.name for layer in again.layers} == {layer.name for layer in model.calibration.layers}


def test_rounded_to_its_dtypes_a_model_stays_close(model, networks, tmp_path):
    path = tmp_path / "folded.safetensors"
    aq.fold(model.path, path, model.calibration)
    off = difference(model.outputs(path), model.expected)
    assert 1e-5 < off < 0.03
    (before, metadata), (after, kept) = map(networks.read_safetensors, (model.path, path))
    assert kept == metadata and list(after) == list(before)
    assert path.stat().st_size - model.path.stat().st_size < 16


def test_inputs_are_evened_out(model, networks, tmp_path):
    """With the whole exponent on inputs, the largest value of every channel is the same, up to the precision
    of scales."""
    path = tmp_path / "folded.safetensors"
    report = aq.fold(model.path, path, model.calibration, alpha=1, dtype="f32")
    largest = {}

    def see(layer, t, x):
        largest[layer] = np.maximum(largest.get(layer, 0), np.abs(x).max(axis=0))

    model.outputs(path, see)
    for one in report.folded:
        for layer in one.layers:
            found = largest[layer.removesuffix(".weight")]
            found = found[found > 0]
            assert found.max() < 1.01 * found.min(), layer


def test_what_is_refused(model, tmp_path):
    path = tmp_path / "folded.safetensors"
    saved = tmp_path / "calibration.parquet"
    aq.Calibration().save(saved)
    with pytest.raises(aq.FileError, match="has not seen the inputs"):
        aq.fold(model.path, path, saved)
    with pytest.raises(aq.ConfigError, match="1.5 is not from 0 to 1"):
        aq.fold(model.path, path, model.calibration, alpha=1.5)
    with pytest.raises(aq.ArgumentError, match="dtype: invalid value 'i8'"):
        aq.fold(model.path, path, model.calibration, dtype="i8")
    with pytest.raises(aq.ConfigError, match="safetensors"):
        aq.fold(model.path, tmp_path / "folded.parquet", model.calibration)
    with pytest.raises(aq.Cancelled):
        aq.fold(model.path, path, model.calibration, progress=lambda done, total: False)
    assert not path.exists()

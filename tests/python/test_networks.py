"""The forward passes used for accuracy reproduce the results stored with the models."""

import sys

import pytest


@pytest.fixture(scope="module")
def quality(root):
    sys.path.insert(0, str(root / "benches"))
    try:
        import quality
    finally:
        sys.path.pop(0)
    return quality


def test_the_predicted_noise_is_that_of_training(quality, models):
    assert quality.DitTrial(models, quick=True).check() < 1e-5


def test_the_likelihood_of_masked_characters_is_that_of_training(quality, models):
    trial = quality.MdlmTrial(models, quick=False)
    loss = trial.losses(trial.network, shares=(50,))[50]
    assert loss == pytest.approx(trial.stored[50], abs=1e-4)


def test_every_linear_is_observed(quality, models):
    digits = quality.DitTrial(models, quick=True)
    seen = {}
    digits.network.forward(
        digits.inputs[0], 10, digits.labels[digits.measured],
        lambda layer, t, x: seen.setdefault(layer, (t, x.shape)) and None,
    )
    weights = digits.network.weights
    linears = {
        name.removesuffix(".weight") for name, weight in weights.items()
        if weight.ndim > 1 and name not in ("pos_embed", "y_embedder.embedding_table.weight")
    }
    assert set(seen) == linears
    for layer, (t, shape) in seen.items():
        weight = weights[f"{layer}.weight"]
        assert (t, shape[1]) == (10, weight[0].size)
    assert seen["blocks.0.attn.qkv"][1][0] == 16 * len(digits.measured)

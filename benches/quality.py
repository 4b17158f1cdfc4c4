"""How good the predictions of a quantized model are, against those of the model as it was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from networks import TIMESTEPS, Array, Dit, Mdlm, Network, Observe, read_safetensors
from sections import cores

# Timesteps at which the predicted noise is compared, and digits at each.
BINS = list(range(10, TIMESTEPS, 20))
DIGITS = 64

# Steps of a DDIM sampler, and images that go through the network at once.
DDIM_STEPS = 50
BATCH = 50

MASKED = (25, 50, 75)

Item, Result, Kind = TypeVar("Item"), TypeVar("Result"), TypeVar("Kind", bound=Network)


def parallel(work: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """On all cores, in order; numpy itself should use one thread, or they are in each other's way."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(work, items))


def frechet(a: Array, b: Array) -> float:
    """Frechet distance of two sets of vectors, taken for Gaussian."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    common = np.linalg.eigvalsh(root @ covariance_b @ root)
    apart = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    spread = np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(np.maximum(common, 0)).sum()
    return float(apart + spread)


class Trial(Generic[Kind]):
    """A model, what to try it on, and inputs to calibrate with."""

    #: Of the files in examples/models.
    name: str
    #: What other weights make another one of.
    network: Kind
    #: Of the noise at each timestep, for weights by signal to noise.
    alphas_cumprod: Array

    def with_weights(self, weights: Mapping[str, Array]) -> Kind:
        """The model, with these weights instead of its own."""
        return type(self.network)(self.network.weights | dict(weights))

    def calibrate(self, observe: Callable[[str, int, Array], Any]) -> None:
        """Runs the model on calibration inputs."""
        raise NotImplementedError


class DitTrial(Trial[Dit]):
    """Digits: the error of the predicted noise, and samples."""

    name = "dit-digits"

    def __init__(self, folder: Path, quick: bool) -> None:
        self.path = folder / f"{self.name}.safetensors"
        self.network = Dit(read_safetensors(self.path)[0])
        self.alphas_cumprod = Dit.alphas_cumprod
        found, _ = read_safetensors(folder / f"{self.name}-eval.safetensors")
        self.images = (found["images"] / 8 - 1).astype(np.float32)
        self.labels = found["labels"].astype(int)
        # Those that the error is measured on calibrate nothing.
        shuffled = np.random.default_rng(0).permutation(len(self.images))
        digits = DIGITS // 4 if quick else DIGITS
        self.bins = BINS[::5] if quick else BINS
        self.measured, self.calibrating = shuffled[:digits], shuffled[digits:]
        self.steps = 50 if quick else 200
        rng = np.random.default_rng(1)
        self.inputs = [self.noised(self.measured, t, rng) for t in self.bins]
        self.expected = self.noise(self.network)
        self._check = {key: found[f"check_{key}"] for key in ("x", "t", "class", "epsilon")}

    def check(self) -> float:
        """How far the predicted noise is from that stored with the model, at most."""
        x, classes = self._check["x"][:, 0], self._check["class"]
        found = [
            self.network.forward(x[i : i + 1], int(t), classes[i : i + 1])
            for i, t in enumerate(self._check["t"])
        ]
        return float(np.abs(np.concatenate(found) - self._check["epsilon"][:, 0]).max())

    def noised(self, digits: Array, t: int, rng: np.random.Generator) -> Array:
        """Digits as they are at a timestep."""
        signal, noise = np.sqrt(self.alphas_cumprod[t]), np.sqrt(1 - self.alphas_cumprod[t])
        images = self.images[digits]
        return (signal * images + noise * rng.standard_normal(images.shape)).astype(np.float32)

    def noise(self, network: Dit, observe: Observe | None = None) -> list[Array]:
        """What is predicted for the fixed inputs of each timestep."""

        def predicted(index: int) -> Array:
            classes = self.labels[self.measured]
            return network.forward(self.inputs[index], self.bins[index], classes, observe)

        return parallel(predicted, list(range(len(self.bins))))

    def noise_errors(self, network: Dit, observe: Observe | None = None) -> list[float]:
        """|noise - expected|^2 / |expected|^2 at each timestep."""
        return [
            float(((found - expected) ** 2).sum() / (expected**2).sum())
            for found, expected in zip(self.noise(network, observe), self.expected)
        ]

    def samples(
        self,
        network: Dit,
        count: int,
        observe: Observe | None = None,
        seed: int = 2,
        steps: int = DDIM_STEPS,
    ) -> Array:
        """Images of all classes in turn, from the same noise for every network, by DDIM."""
        noise = np.random.default_rng(seed).standard_normal((count, 8, 8)).astype(np.float32)
        classes = np.arange(count) % 10
        timesteps = np.linspace(TIMESTEPS - 1, 0, steps).round().astype(int)
        kept = np.append(self.alphas_cumprod[timesteps], 1.0)

        def sampled(begin: int) -> Array:
            x, of_class = noise[begin : begin + BATCH], classes[begin : begin + BATCH]
            for t, now, then in zip(timesteps, kept, kept[1:]):
                epsilon = network.forward(x, int(t), of_class, observe)
                clean = (x - np.sqrt(1 - now) * epsilon) / np.sqrt(now)
                x = (np.sqrt(then) * clean + np.sqrt(1 - then) * epsilon).astype(np.float32)
            return x

        return np.concatenate(parallel(sampled, list(range(0, count, BATCH))))

    def distance(self, samples: Array) -> float:
        """Of samples to the real digits."""
        return frechet(samples, self.images)

    def calibrate(self, observe: Callable[[str, int, Array], Any], only: int | None = None) -> None:
        """Noised digits at timesteps spread evenly, or all at one."""
        stride = TIMESTEPS // self.steps
        times = [stride // 2 + stride * i if only is None else only for i in range(self.steps)]

        def run(seed: int) -> None:
            rng = np.random.default_rng((3, seed))
            digits = rng.choice(self.calibrating, 64)
            inputs = self.noised(digits, times[seed], rng)
            self.network.forward(inputs, times[seed], self.labels[digits], observe)

        # One after the other: sums in the same order give the same codes.
        for seed in range(self.steps):
            run(seed)


class MdlmTrial(Trial[Mdlm]):
    """Python code: the likelihood of masked characters."""

    name = "mdlm-python"

    def __init__(self, folder: Path, quick: bool) -> None:
        self.path = folder / f"{self.name}.safetensors"
        self.network = Mdlm(read_safetensors(self.path)[0])
        # The share of characters that are still there.
        self.alphas_cumprod = 1 - (np.arange(TIMESTEPS) + 0.5) / TIMESTEPS
        self.found, stored = read_safetensors(folder / f"{self.name}-eval.safetensors")
        self.stored = {share: float(stored[f"masked_nll_{share}"]) for share in MASKED}
        self.sequences = 32 if quick else 256
        self.shares = (50,) if quick else MASKED

    def batches(self, share: int) -> Iterator[tuple[Array, Array]]:
        """Ids and masks of the evaluation set."""
        for begin in range(0, self.sequences, 32):
            part = slice(begin, begin + 32)
            yield self.found["ids"][part], self.found[f"mask_{share}"][part] != 0

    def losses(
        self, network: Mdlm, observe: Observe | None = None, shares: tuple[int, ...] = ()
    ) -> dict[int, float]:
        """Negative log-likelihood in nats per masked character, by percent masked."""

        def lost(work: tuple[int, Array, Array]) -> tuple[float, int]:
            share, ids, masked = work
            inputs = np.where(masked, Mdlm.mask_id, ids)
            logits = network.forward(inputs, share * TIMESTEPS // 100, observe)[masked].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            chosen = np.take_along_axis(logits, ids[masked].astype(int)[:, None], 1)[:, 0]
            return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum()), int(masked.sum())

        losses = {}
        for share in shares or self.shares:
            sums = parallel(lost, [(share, *batch) for batch in self.batches(share)])
            losses[share] = sum(loss for loss, _ in sums) / sum(count for _, count in sums)
        return losses

    def calibrate(self, observe: Callable[[str, int, Array], Any]) -> None:
        """Sequences of the training text, masked to shares spread evenly."""
        rng = np.random.default_rng(4)
        count = 64 if self.sequences < 256 else 256
        ratios = rng.permutation((np.arange(count) + rng.random()) / count) * 0.98 + 0.02
        for ids, ratio in zip(self.found["calibration_ids"], ratios):
            masked = rng.random(ids.shape) < ratio
            inputs = np.where(masked, Mdlm.mask_id, ids)[None]
            self.network.forward(inputs, min(int(ratio * TIMESTEPS), TIMESTEPS - 1), observe)

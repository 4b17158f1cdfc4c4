"""Ways to quantize the example models with the engine, and what activations are rounded to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import arrowquant
from networks import TIMESTEPS, Array, Observe
from quality import DitTrial, MdlmTrial, Trial

GROUP = 128

# A timestep in the middle, for a calibration that saw no other.
ONE_TIMESTEP = 500


class Missing(Exception):
    """The library cannot do this."""


@dataclass(frozen=True)
class Method:
    """A row of a table."""

    name: str
    settings: dict[str, Any]
    #: Which calibration it needs: "" for none, else "all" timesteps or "one".
    calibration: str = ""
    group_size: int = GROUP


LSQ = {"method": "lsq", "gain": "unit"}
GPTQ = {"method": "gptq"}
EQUAL = {"time_weighting": "equal", "enable_spatial": False}
SNR = {"time_weighting": "snr", "num_time_groups": 20, "enable_spatial": False}
SPATIAL = {"enable_spatial": True}

METHODS = (
    Method("minmax", {"method": "minmax", "scheme": "affine", "gain": "lsq"}),
    Method("lsq without unit gain", {"method": "lsq", "gain": "lsq"}),
    Method("lsq", LSQ),
    Method("lsq + importance", LSQ | EQUAL, "all"),
    Method("lsq + spatial", LSQ | EQUAL | SPATIAL, "all"),
    Method("lsq + time-aware", LSQ | SNR, "all"),
    Method("gptq", GPTQ | EQUAL, "all"),
    Method("gptq, affine", GPTQ | EQUAL | {"scheme": "affine"}, "all"),
    Method("gptq + time-aware", GPTQ | SNR, "all"),
    Method("combined", GPTQ | SNR | SPATIAL, "all"),
)

# What a calibration sees of time, and how it weighs it; INT2, digits only.
TIME = (
    Method("one timestep", GPTQ | EQUAL, "one"),
    *(Method(f"equal, {n} groups", GPTQ | EQUAL | {"num_time_groups": n}, "all") for n in (5, 10, 20)),
    Method("snr, 20 groups", GPTQ | SNR, "all"),
    Method("relative, 20 groups", GPTQ | SNR | {"time_weighting": "relative"}, "all"),
)

# The best of INT2 at other sizes of groups; 0 is the whole row.
GROUPS = tuple(Method(f"g{n}" if n else "row", GPTQ | SNR, "all", n) for n in (64, 128, 256, 0))


# The same size three ways: 3 bits by many scales, by biases, and by more bits for some tensors.
MIXED = tuple(
    Method(f"{base}, {name}", settings | how, which, group)
    for base, settings, which in (("lsq", LSQ, ""), ("lsq + importance", LSQ | EQUAL, "all"), ("gptq", GPTQ | SNR, "all"))
    for name, how, group in (
        ("int2 g16", {}, 16),
        ("int2 g32 affine", {"scheme": "affine"}, 32),
        ("mixed", {"avg_bits": 3.0}, 0),
    )
)


@dataclass
class Quantized:
    """Weights of blocks as they decode, and what they take."""

    weights: dict[str, Array]
    bits_per_weight: float
    #: How many tensors have which format.
    formats: Counter[str]
    #: What inputs of a layer are divided by before its weights are used; mostly none.
    input_scales: dict[str, Array] = field(default_factory=dict)


@dataclass
class Engine:
    """Quantizes one model, and calibrates it when that is first needed."""

    trial: Trial[Any]
    say: Callable[[str], None]
    _calibrations: dict[str, Any] = field(default_factory=dict)

    def calibration(self, which: str) -> Any:
        """What the library learned from the model's activations."""
        if which not in self._calibrations:
            if not hasattr(arrowquant, "Calibration"):
                raise Missing("this library has no calibrations")
            self.say(f"{self.trial.name}: calibrating, {which}")
            found = arrowquant.Calibration(
                timesteps=TIMESTEPS, bins=100, hessian=True, hessian_groups=20
            )
            found.set_schedule(self.trial.alphas_cumprod)
            wanted = layers(self.trial)

            def observe(layer: str, timestep: int, x: Array) -> None:
                if layer in wanted:
                    found.observe(layer, timestep, x)

            if which == "one" and isinstance(self.trial, DitTrial):
                self.trial.calibrate(observe, ONE_TIMESTEP)
            else:
                self.trial.calibrate(observe)
            self._calibrations[which] = found
        return self._calibrations[which]

    def quantize(self, bits: int, method: Method, kept: Set[str] = frozenset()) -> Quantized:
        """All linears of blocks but those kept; whatever else there is stays as it is."""
        # Every tensor is to have the bits of its row, however little is left of it.
        settings: dict[str, Any] = {"min_cosine": "none"} | method.settings
        if "avg_bits" not in settings:
            settings |= {"bits": bits, "group_size": method.group_size}
        if method.calibration:
            settings["calibration"] = self.calibration(method.calibration)
        blocks = set(self.trial.network.blocks()) - kept
        others = [name for name in self.trial.network.weights if name not in blocks]
        try:
            packed, report = arrowquant.quantize_to_bytes(self.trial.path, keep=others, **settings)
        except arrowquant.ConfigError as error:
            raise Missing(str(error)) from None
        assert {tensor.name for tensor in report if tensor.format != "kept"} == blocks
        with arrowquant.open(packed) as model:
            weights = {name: model[name].dequantize() for name in sorted(blocks)}
        formats = Counter(tensor.format for tensor in report if tensor.name in blocks)
        return Quantized(weights, report.totals.bits_per_weight, formats)


def layers(trial: Trial[Any]) -> set[str]:
    """Names of the layers whose weights are quantized."""
    return {name.removesuffix(".weight") for name in trial.network.blocks()}


# Activations, rounded in the forward pass.

Params = tuple[Array, Array]


def params_of(low: Array, high: Array, bits: int) -> Params:
    """Scale and smallest value of an affine grid over a range."""
    scale = (high - low) / np.float32(2**bits - 1)
    return np.where(scale > 0, scale, np.float32(1)), low


def rounded(x: Array, params: Params, bits: int) -> Array:
    """On the grid, and back."""
    scale, low = params
    codes = (x - low) * (1 / scale)
    np.rint(codes, out=codes)
    np.clip(codes, 0, 2**bits - 1, out=codes)
    codes *= scale
    codes += low
    return codes


def dynamic(trial: Trial[Any], bits: int) -> Observe:
    """Each token gets the range that it has."""
    wanted = layers(trial)

    def observe(layer: str, _: int, x: Array) -> Array | None:
        if layer not in wanted:
            return None
        return rounded(x, params_of(x.min(1, keepdims=True), x.max(1, keepdims=True), bits), bits)

    return observe


def ranges(trial: DitTrial | MdlmTrial, groups: int) -> dict[tuple[str, int], tuple[Array, Array]]:
    """Smallest and largest activation of calibration inputs, by layer and group of timesteps."""
    wanted, found = layers(trial), {}

    def observe(layer: str, timestep: int, x: Array) -> None:
        if layer in wanted:
            key = layer, timestep * groups // TIMESTEPS
            low, high = found.get(key, (np.float32(np.inf), np.float32(-np.inf)))
            found[key] = min(low, x.min()), max(high, x.max())

    trial.calibrate(observe)
    return found


def static(by_group: dict[tuple[str, int], tuple[Array, Array]], groups: int, bits: int) -> Observe:
    """One range for a layer in each group of timesteps, known beforehand."""
    grids = {key: params_of(low, high, bits) for key, (low, high) in by_group.items()}

    def observe(layer: str, timestep: int, x: Array) -> Array | None:
        grid = grids.get((layer, timestep * groups // TIMESTEPS))
        return None if grid is None else rounded(x, grid, bits)

    return observe


# Groups of timesteps of static ranges; 0 is dynamic.
ACTIVATIONS = {"one static range": 1, "5 groups": 5, "10 groups": 10, "20 groups": 20, "dynamic": 0}

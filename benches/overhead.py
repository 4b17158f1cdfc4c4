"""What a calibration adds to the time of quantizing: importance, time-aware weights, smoothing and
rotation, GPTQ. And what it takes to find out what tensors lose, which budgets go by."""

from __future__ import annotations

import json
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import arrowquant
from networks import Array, Dit

# Of the layers that are timed.
LAYERS, ROWS, COLS = 8, 4096, 2048
LAYERS_QUICK = 2
ROUNDS, ROUNDS_QUICK = 7, 2

LSQ = {"bits": 4, "method": "lsq"}
VARIANTS: dict[str, dict[str, Any]] = {
    "lsq": LSQ,
    "lsq + importance": LSQ | {"enable_time_aware": False, "enable_spatial": False},
    "lsq + time-aware": LSQ | {"time_weighting": "snr", "enable_spatial": False},
    "lsq + spatial": LSQ | {"time_weighting": "snr", "enable_spatial": True},
}
GPTQ = {"bits": 4, "method": "gptq", "enable_spatial": False}


def write_model(path: Path, layers: int) -> None:
    """Random bf16 weights, from a fixed seed."""
    rng = np.random.default_rng(1)
    header, size = {}, ROWS * COLS * 2
    for i in range(layers):
        offsets = [i * size, (i + 1) * size]
        header[f"layers.{i}.weight"] = {"dtype": "BF16", "shape": [ROWS, COLS], "data_offsets": offsets}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(layers):
            weights = (rng.standard_t(5, size=(ROWS, COLS)) * 0.02).astype("<f4")
            file.write((weights.view("<u4") >> 16).astype("<u2").tobytes())


def calibrated(layers: int, hessian: bool) -> Any:
    """Of random inputs, some channels of which are large."""
    rng = np.random.default_rng(2)
    found = arrowquant.Calibration(timesteps=1000, bins=20, hessian=hessian, hessian_groups=10)
    found.set_schedule(Dit.alphas_cumprod)
    channels = np.where(np.arange(COLS) % 97 == 3, 20, 1).astype("f4")
    for timestep in range(25, 1000, 50):
        x: Array = rng.standard_normal((32, COLS)).astype("f4") * channels
        for i in range(layers):
            found.observe(f"layers.{i}", timestep, x)
    return found


def seconds(path: Path, output: Path, settings: dict[str, Any]) -> float:
    start = time.perf_counter()
    arrowquant.quantize(path, output, **settings)
    return time.perf_counter() - start


def analysis(path: Path, output: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, and those of all cores, that measuring sensitivities takes and that quantizing does."""
    jobs: dict[str, Callable[[], Any]] = {
        "analyze": lambda: arrowquant.analyze(path),
        "quantize": lambda: arrowquant.quantize(path, output, bits=4),
    }
    best = {name: {"wall": np.inf, "cpu": np.inf} for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            best[name] = {key: min(best[name][key], taken[key]) for key in taken}
    return best


def measure(quick: bool) -> dict[str, Any]:
    """Seconds by variant, the best of some rounds in turns."""
    layers, rounds = (LAYERS_QUICK, ROUNDS_QUICK) if quick else (LAYERS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "model.safetensors", Path(folder) / "out.parquet"
        write_model(path, layers)
        light, full = calibrated(layers, hessian=False), calibrated(layers, hessian=True)
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name, settings in VARIANTS.items():
                given = settings if name == "lsq" else settings | {"calibration": light}
                best[name] = min(best.get(name, np.inf), seconds(path, output, given))
        best["gptq"] = seconds(path, output, GPTQ | {"calibration": full})
        analyzed = analysis(path, output, rounds)
        return {"weights": layers * ROWS * COLS, "seconds": best, "analysis": analyzed}

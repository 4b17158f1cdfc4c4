"""What is measured: each function makes the models it needs and returns rows of results."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models
from measure import Case, Progress, Row, measure, run
from models import Model
from programs import ROOT, Programs, yardsticks

# Outputs by size of the bf16 model: the largest is that of 8 bits, a copy is as large as the model, and
# 4 bits with scales take a little over a quarter.
QUANTIZED, COPIED, INT4 = 0.6, 1.0, 0.28


@dataclass(frozen=True)
class Bench:
    """What is to be measured, and with what."""

    programs: Programs
    folder: Path
    sizes: list[Model]
    bits: list[int]
    runs: int
    quick: bool
    skip_python: bool
    say: Progress

    @property
    def middle(self) -> Model:
        """The model for what is measured with one only."""
        return models.SIZES["600M"] if models.SIZES["600M"] in self.sizes else self.sizes[0]

    def yardsticks(self) -> list[str]:
        """Programs ours is compared with."""
        return [] if self.skip_python else yardsticks()

    def written(self, model: Model, outputs: float = QUANTIZED) -> AbstractContextManager[Path]:
        """A model's file, for a while."""
        self.say(f"writing the model {model.name}, {model.bytes / 1e9:.2f} GB")
        return models.written(model, self.folder, outputs)


def cores() -> int:
    """Those that we may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def every_program(bench: Bench) -> list[Row]:
    """All callers of ours and the yardsticks, on models of all sizes."""
    rows = []
    for model in bench.sizes:
        with bench.written(model) as path:
            for width in bench.bits:
                cases = bench.programs.native(model.name, path, width)
                cases += [
                    bench.programs.yardstick(model.name, path, width, program)
                    for program in bench.yardsticks()
                ]
                for row in measure(cases, bench.runs, bench.say):
                    rows.append(row | {"weights": model.weights})
    return rows


def steps(bench: Bench) -> list[Row]:
    """What each part of the engine adds: from numpy to all of it."""
    model = bench.middle
    with bench.written(model) as path:
        cases = []

        def step(width: int, name: str, *flags: str, **env: str) -> None:
            what = {"size": model.name, "bits": width, "step": name}
            cases.append(bench.programs.command_line(path, width, "minmax", what, *flags, **env))

        for width in bench.bits:
            if not bench.skip_python:
                numpy = bench.programs.yardstick(model.name, path, width, "numpy")
                what = {"size": model.name, "bits": width, "step": "numpy"}
                cases.append(replace(numpy, what=what))
            step(width, "native, scalar", "--threads", "1", AQ_ISA="scalar")
            step(width, "+ SIMD", "--threads", "1")
            step(width, "+ threads")
            step(width, "+ streaming", "--streaming")
        return measure(cases, bench.runs, bench.say)


def against_cp(bench: Bench) -> list[Row]:
    """Whole runs against a copy of the file that waits for the disk as they do."""
    model = bench.sizes[0] if bench.quick else models.TWO_GB
    with bench.written(model, COPIED) as path:
        copy = path.with_name("copy.safetensors")
        what = {"size": model.name, "program": "cp + fsync"}
        cases = [Case(what, ["cp", path, copy], copy, fsync=True, yardstick=True)]
        for method in ("minmax", "default"):
            what = {"size": model.name, "program": f"native, {method}"}
            cases.append(bench.programs.command_line(path, 4, method, what))
        return measure(cases, bench.runs if bench.quick else 7, bench.say)


def parallel(bench: Bench) -> list[Row]:
    """Numbers of threads as far as there are cores."""
    model = bench.middle
    counts = sorted({n for n in (1, 2, 4, 8, 16) if n <= cores()} | {cores()})
    with bench.written(model) as path:
        cases = []
        for method in ("minmax", "default"):
            for threads in counts:
                what = {"size": model.name, "bits": 4, "method": method, "threads": threads}
                flags = ["--threads", str(threads)]
                cases.append(bench.programs.command_line(path, 4, method, what, *flags))
        return measure(cases, bench.runs, bench.say)


def streaming(bench: Bench) -> list[Row]:
    """With little held in memory, against the usual way."""
    model = models.TEN_LAYERS if bench.quick else models.HUNDRED_LAYERS
    with bench.written(model) as path:
        cases = [
            bench.programs.command_line(path, 4, "minmax", {"size": model.name, "mode": mode}, *flags)
            for mode, flags in {"batch": (), "streaming": ("--streaming",)}.items()
        ]
        return measure(cases, bench.runs, bench.say)


def ceilings(bench: Bench) -> list[Row]:
    """Peak memory under a ceiling, by model size."""
    rows = []
    for model in [*bench.sizes, *([] if bench.quick else [models.FOURTEEN_B])]:
        large = model.name in ("7B", "14B")
        modes = {"batch": ()} if not large else {}
        modes |= {"streaming": ("--streaming",), "limit 64MB": ("--memory-limit", "64MB")}
        with bench.written(model, INT4) as path:
            cases = []
            for mode, flags in modes.items():
                what = {"size": model.name, "mode": mode}
                case = bench.programs.command_line(path, 4, "default", what, *flags)
                cases.append(replace(case, once=large))
            for row in measure(cases, 1 if large else 7, bench.say):
                rows.append(row | {"source_bytes": model.bytes})
    return rows


def ratios(bench: Bench, only: str) -> list[Row]:
    """Kernels alone, in memory: what the Rust bench measures."""
    bench.say(f"cargo bench --bench ratios --only {only}")
    path = bench.folder / "ratios.json"
    quick = ["--quick"] if bench.quick else []
    command = ["cargo", "bench", "--quiet", "--bench", "ratios", "--"]
    run([*command, "--json", path, "--only", only, *quick], cwd=ROOT)
    keys = ("section", "operation", "size", "isa", "threads", "reference")
    return [
        {"what": {key: found.pop(key) for key in keys}} | found
        for found in json.loads(path.read_text())
    ]


def in_memory(bench: Bench) -> list[Row]:
    """numpy's share of the comparison with our kernels on all cores."""
    rows = []
    for width in bench.bits:
        for program, engine in {"numpy": "numpy", "numpy tuned": "tuned"}.items():
            bench.say(f"{program} in memory, int{width}")
            command = [sys.executable, ROOT / "benches/baseline.py", "--time", "--bits", str(width)]
            command += ["--engine", engine, *(["--quick"] if bench.quick else [])]
            what = {"bits": width, "program": program}
            rows.append({"what": what, "weights_per_s": float(run(command))})
    return rows


def fit_serial(threads: list[int], seconds: list[float]) -> float:
    """Amdahl's serial fraction s: least squares of T(n) = a + b / n, where s = a / (a + b)."""
    shares = [1 / n for n in threads]
    mean_x, mean_y = sum(shares) / len(shares), sum(seconds) / len(seconds)
    spread = sum((x - mean_x) ** 2 for x in shares)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(shares, seconds)) / spread
    serial = mean_y - slope * mean_x
    return min(max(serial / (serial + slope), 0.0), 1.0)


def measure_all(bench: Bench, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """Results by section."""
    results: dict[str, dict[str, Any]] = {section: {} for section in wanted}
    if "speed" in wanted or "memory" in wanted:
        rows = every_program(bench)
        for section, other in (("speed", "peak_bytes"), ("memory", "seconds")):
            if section in wanted:
                kept = [{key: row[key] for key in row if key != other} for row in rows]
                results[section]["programs"] = kept
    if "speed" in wanted:
        results["speed"]["against_cp"] = against_cp(bench)
        results["speed"]["steps"] = steps(bench)
    if "simd" in wanted:
        results["simd"]["ratios"] = ratios(bench, "simd,bandwidth")
    if "parallel" in wanted:
        results["parallel"]["threads"] = parallel(bench)
        results["parallel"]["ratios"] = ratios(bench, "threads")
        if not bench.skip_python:
            results["parallel"]["in_memory"] = in_memory(bench)
    if "memory" in wanted:
        results["memory"]["streaming"] = streaming(bench)
        results["memory"]["ceilings"] = ceilings(bench)
    return results

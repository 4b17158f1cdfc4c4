"""What the engine is to reach, and whether it did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from measure import Row, label

# What is compared of a figure's runs: the best time, and the most memory.
COMPARED = {"seconds": "min", "peak_bytes": "max"}

LIMITS = {"100M": 120, "600M": 600, "7B": 300}


@dataclass(frozen=True)
class Target:
    """One line of the closing table."""

    text: str
    figure: str
    #: None where it was not measured.
    passed: bool | None

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "PASS", False: "FAIL", None: "not measured"}[self.passed]


def rows_of(results: dict[str, Any], section: str, part: str) -> list[Row]:
    """Rows of results, none where they were not measured."""
    rows: list[Row] = results["sections"].get(section, {}).get(part, [])
    return rows


def against(rows: list[Row], figure: str, yardstick: str, **what: Any) -> list[tuple[Row, float]]:
    """Rows of ours as `what` says, with the yardstick's figure divided by theirs, of the same model
    and bits."""
    which = COMPARED[figure]
    theirs = {
        (row["what"]["size"], row["what"]["bits"]): row[figure][which]
        for row in rows
        if row["what"]["program"] == yardstick
    }
    pairs = []
    for row in rows:
        key = row["what"]["size"], row["what"]["bits"]
        if "yardstick" not in row and key in theirs and what.items() <= row["what"].items():
            pairs.append((row, theirs[key] / row[figure][which]))
    return pairs


def span(values: list[float], form: str) -> str:
    """From the least to the most."""
    low, high = (form.format(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def in_memory(results: dict[str, Any]) -> list[float]:
    """Our kernels on all cores against numpy, both from memory to memory."""
    ours: dict[str, tuple[int, float]] = {}
    for row in rows_of(results, "parallel", "ratios"):
        operation, threads = row["what"]["operation"], row["what"]["threads"]
        ours[operation] = max(ours.get(operation, (0, 0.0)), (threads, row["weights_per_s"]))
    return [
        ours[f"quantize int{row['what']['bits']} minmax"][1] / row["weights_per_s"]
        for row in rows_of(results, "parallel", "in_memory")
        if ours and row["what"]["program"] == "numpy"
    ]


def targets(results: dict[str, Any]) -> list[Target]:
    """The closing table. A target of several figures is reached by the worst of them."""
    found: list[Target] = []

    def add(
        text: str, values: list[float], form: str, least: float = 0, most: float = math.inf
    ) -> None:
        passed = all(least <= value <= most for value in values) if values else None
        found.append(Target(text, span(values, form) if values else "", passed))

    programs = rows_of(results, "speed", "programs")
    for size, limit in LIMITS.items():
        seconds = [
            row["seconds"]["max"]
            for row in programs
            if row["what"]["size"] == size and "yardstick" not in row
        ]
        text = f"{size} model under {limit} s: INT2, 4 and 8, all callers, minmax and lsq, the slowest run of each"
        add(text, seconds, "{:.2f} s", most=limit)

    python, native, c = [], [], []
    for row, ratio in against(programs, "seconds", "numpy", method="minmax"):
        program = row["what"]["program"]
        (python if program == "Python ctypes" else native).append(ratio)
        c += [ratio] if program == "C" else []
    add("at least 5 times numpy: minmax, command line, C and C++", native, "{:.1f}x", least=5)
    add("at least 5 times numpy: minmax from Python, its start included", python, "{:.1f}x", least=5)
    add("10 times numpy: minmax from C", c, "{:.1f}x", least=10)
    kernels = in_memory(results)
    add("50 times numpy: minmax in memory, all cores", kernels, "{:.1f}x", least=50)

    peaks = rows_of(results, "memory", "programs")
    shares = [
        1 / ratio
        for row, ratio in against(peaks, "peak_bytes", "numpy")
        if row["what"]["program"] != "Python ctypes"
    ]
    text = "at most 0.5 of numpy's peak memory: command line, C and C++"
    add(text, shares, "{:.2f}", most=0.5)

    under = rows_of(results, "memory", "ceilings")
    for mode, most in (("streaming", 256 << 20), ("limit 64MB", 64_000_000)):
        peaks = [row["peak_bytes"]["max"] / 1e6 for row in under if row["what"]["mode"] == mode]
        text = f"{mode}: peak memory under {most / 1e6:.0f} MB, every model"
        add(text, peaks, "{:.0f} MB", most=most / 1e6)
    by_mode = {
        row["what"]["mode"]: row["seconds"]["median"]
        for row in under
        if row["what"]["size"] == "600M"
    }
    shares = [by_mode["streaming"] / by_mode["batch"]] if by_mode else []
    add("streaming at most 1.15 times as long as batch: 600M", shares, "{:.2f}", most=1.15)

    whole_runs = rows_of(results, "speed", "against_cp")
    copies = {row["what"]["program"]: row["seconds"]["min"] for row in whole_runs}
    for method, share in (("minmax", 0.5), ("default", 0.8)):
        program = f"native, {method}"
        shares = [copies[program] / copies["cp + fsync"]] if copies else []
        text = f"int4 {method}, file to file: at most {share} of cp + fsync"
        add(text, shares, "{:.2f}", most=share)

    ratios = rows_of(results, "simd", "ratios")
    simd = [
        row["scalar_ratio"]
        for row in ratios
        if row["what"]["isa"] == results["machine"]["isa"]
        and row["what"]["operation"].startswith("quantize")
        and row["scalar_ratio"] is not None
    ]
    text = f"SIMD ({results['machine']['isa']}) at least 2 times scalar: quantize, every size"
    add(text, simd, "{:.1f}x", least=2)

    for row in ratios + rows_of(results, "parallel", "ratios"):
        if row["target"] is not None:
            text = f"{label(row['what'])}: at least {row['target']:g}"
            add(text, [row["ratio"]], "{:.2f}", least=row["target"])
    return found

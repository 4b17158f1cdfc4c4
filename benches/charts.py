"""PNG charts of results."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from measure import Row
from report import grouped, named
from sections import fit_serial
from targets import against, rows_of

# By program, the same in every chart: ours blue, others grey and warm.
COLORS = {
    "command line, minmax": "#08519c",
    "C, minmax": "#3182bd",
    "C++, minmax": "#6baed6",
    "Python ctypes, minmax": "#9ecae1",
    "command line, default": "#54278f",
    "numpy": "#d95f0e",
    "numpy tuned": "#fe9929",
    "torch": "#969696",
}


def log_axis(axes: Axes, heights: list[float]) -> None:
    """With room around what is shown, and plain numbers."""
    axes.set_yscale("log")
    axes.set_ylim(min(heights) / 2, max(heights) * 1.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def bars(axes: Axes, places: list[str], series: dict[str, list[float | None]]) -> None:
    """Groups of bars, one group a place."""
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        offset = (index - (len(series) - 1) / 2) * width
        known = [(place + offset, value) for place, value in enumerate(values) if value is not None]
        axes.bar(
            [place for place, _ in known], [value for _, value in known], width, label=name,
            color=COLORS.get(name),
        )
    axes.set_xticks(range(len(places)), places)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def by_model(
    rows: list[Row], value: Callable[[Row], float | None], title: str, unit: str, log: bool,
    lines: tuple[float, ...] = (),
) -> Figure | None:
    """A panel for each model, groups for each number of bits, bars for each program."""
    rows = [row for row in rows if value(row) is not None]
    if not rows:
        return None
    sizes = list(dict.fromkeys(row["what"]["size"] for row in rows))
    bits = sorted({row["what"]["bits"] for row in rows})
    names = [name for name in COLORS if any(named(row) == name for row in rows)]
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(2.2 + 3.6 * len(sizes), 4.4), squeeze=False, layout="constrained"
    )
    for size, axes in zip(sizes, panels[0]):
        found = {
            (named(row), row["what"]["bits"]): value(row) for row in rows if row["what"]["size"] == size
        }
        series = {name: [found.get((name, width)) for width in bits] for name in names}
        bars(axes, [f"INT{width}" for width in bits], series)
        if log:
            log_axis(axes, [*lines, *filter(None, found.values())])
        for height in lines:
            axes.axhline(height, color="black", linewidth=1, linestyle="--")
        axes.set_title(size, fontsize=10)
    panels[0][0].set_ylabel(unit)
    figure.suptitle(title)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, 2 + len(sizes)), fontsize=8)
    return figure


def time(results: dict[str, Any]) -> Figure | None:
    """How long each program takes."""
    rows = rows_of(results, "speed", "programs")
    title = "Time from file to file, best run (less is better)"
    return by_model(rows, lambda row: row["seconds"]["min"], title, "seconds", log=True)


def speedup(results: dict[str, Any]) -> Figure | None:
    """Ours against numpy."""
    rows = rows_of(results, "speed", "programs")
    ratios = {id(row): ratio for row, ratio in against(rows, "seconds", "numpy")}
    title = "Times as fast as numpy (more is better), lines at 5x and 10x"
    return by_model(rows, lambda row: ratios.get(id(row)), title, "speed-up", True, (5, 10))


def throughput(results: dict[str, Any]) -> Figure | None:
    """Weights a second."""
    rows = rows_of(results, "speed", "programs")

    def millions(row: Row) -> float:
        return row["weights"] / row["seconds"]["min"] / 1e6

    return by_model(rows, millions, "Throughput (more is better)", "million weights / s", log=False)


def memory(results: dict[str, Any]) -> Figure | None:
    """Peaks."""
    rows = rows_of(results, "memory", "programs")

    def megabytes(row: Row) -> float:
        return row["peak_bytes"]["max"] / 1e6

    return by_model(rows, megabytes, "Peak resident memory (less is better)", "MB", log=False)


def threads(results: dict[str, Any]) -> Figure | None:
    """Speed-up by the number of threads, beside the ideal and the fit."""
    series = grouped(rows_of(results, "parallel", "threads"), "method")
    if not series:
        return None
    figure, axes = plt.subplots(figsize=(6, 4.4), layout="constrained")
    counts = [row["what"]["threads"] for row in next(iter(series.values()))]
    axes.plot(counts, counts, color="black", linestyle="--", linewidth=1, label="ideal")
    for (method, rows), color in zip(series.items(), ("#08519c", "#54278f")):
        times = [row["seconds"]["min"] for row in rows]
        name = method
        if len(counts) > 1:
            name += f" (serial: {100 * fit_serial(counts, times):.0f} %)"
        axes.plot(counts, [times[0] / time for time in times], marker="o", color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, map(str, counts))
    axes.set_yticks(counts, map(str, counts))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("threads")
    axes.set_ylabel("speed-up over one thread")
    axes.set_title("Thread scaling, int4, from file to file")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure


def simd(results: dict[str, Any]) -> Figure | None:
    """Each instruction set against scalar: a bar to the median of all sizes, a dot for each."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows_of(results, "simd", "ratios"):
        if row["scalar_ratio"] is not None and row["what"]["isa"] != "scalar":
            by_isa = found.setdefault(row["what"]["isa"], {})
            by_isa.setdefault(row["what"]["operation"], []).append(row["scalar_ratio"])
    if not found:
        return None
    operations = list(dict.fromkeys(name for by_isa in found.values() for name in by_isa))
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.4 * len(operations)), layout="constrained")
    height = 0.8 / len(found)
    for index, (isa, by_isa) in enumerate(found.items()):
        places = [operations.index(name) + (index - (len(found) - 1) / 2) * height for name in by_isa]
        axes.barh(places, list(map(statistics.median, by_isa.values())), height, label=isa, alpha=0.8)
        for place, ratios in zip(places, by_isa.values()):
            axes.plot(ratios, [place] * len(ratios), ".", color="black", markersize=4)
    for ratio in (2, 4):
        axes.axvline(ratio, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(operations)), operations)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as scalar: median of all sizes, and each (dots); lines at 2x and 4x")
    axes.set_title("Kernels by instruction set")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=len(found))
    return figure


def draw(results: dict[str, Any], folder: Path) -> list[str]:
    """Writes a PNG for each chart that there are figures for; their names."""
    names = []
    for make in (time, speedup, throughput, threads, memory, simd):
        figure = make(results)
        if figure is not None:
            # Without the version of matplotlib, which would change files that show the same.
            figure.savefig(folder / f"{make.__name__}.png", dpi=110, metadata={"Software": None})
            plt.close(figure)
            names.append(make.__name__)
    return names

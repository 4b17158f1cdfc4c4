"""PNG charts of accuracy, and a picture of samples."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measure import Row
from networks import Array

# By method, the same in every chart: without calibration grey and warm, with it blue.
COLORS = {
    "minmax": "#969696",
    "lsq without unit gain": "#fdbe85",
    "lsq": "#d95f0e",
    "lsq + importance": "#c7e9c0",
    "lsq + spatial": "#74c476",
    "lsq + time-aware": "#238b45",
    "gptq": "#6baed6",
    "gptq, affine": "#41b6c4",
    "gptq + time-aware": "#2171b5",
    "combined": "#54278f",
}


def over_time(results: dict[str, Any]) -> Figure | None:
    """Errors of INT2 at each timestep, by method."""
    found = results["digits"]
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for row in found["rows"]:
        if row["what"]["bits"] == 2:
            method = row["what"]["method"]
            axes.plot(found["bins"], row["errors"], label=method, color=COLORS.get(method))
    axes.set_yscale("log")
    axes.set_xlabel("timestep")
    axes.set_ylabel("relative error of the predicted noise")
    axes.set_title("INT2 on digits (less is better)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def against_bits(results: dict[str, Any]) -> Figure | None:
    """What is lost, by bits per weight."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")

    def panel(axes: Axes, rows: list[Row], values: list[float], title: str) -> None:
        for method in dict.fromkeys(row["what"]["method"] for row in rows):
            points = [
                (row["bits_per_weight"], value) for row, value in zip(rows, values)
                if row["what"]["method"] == method
            ]
            axes.plot(*zip(*points), marker="o", label=method, color=COLORS.get(method))
        # A rise within noise may be below zero.
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_xlabel("bits per weight")
        axes.set_title(title)
        axes.grid(alpha=0.3)

    text, digits = results["text"]["rows"], results["digits"]["rows"]
    panel(left, text, [row["rise"]["50"] for row in text], "Text: rise of the loss, 50 % masked")
    panel(right, digits, [mean(row["errors"]) for row in digits], "Digits: error of the noise")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def grid(pictures: dict[str, Array]) -> Figure:
    """Samples from the same noise, a row for each model."""
    figure, axes = plt.subplots(len(pictures), 1, figsize=(9, 0.55 * len(pictures)), layout="constrained")
    for (name, images), row in zip(pictures.items(), np.atleast_1d(axes)):
        framed = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
        row.imshow(np.concatenate(list(framed), axis=1), cmap="gray", vmin=-1, vmax=1)
        row.set_xticks([])
        row.set_yticks([])
        row.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def draw(results: dict[str, Any], pictures: dict[str, Array], folder: Path) -> None:
    """Writes all charts; the picture only where there are samples."""
    figures = {"accuracy_time": over_time(results), "accuracy_bits": against_bits(results)}
    if pictures:
        figures["accuracy_digits"] = grid(pictures)
    for name, figure in figures.items():
        if figure is not None:
            # Without the version of matplotlib, which would change files that show the same.
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
            plt.close(figure)

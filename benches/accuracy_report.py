"""Tables of accuracy, as text and as a section of docs/benchmarks.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

from measure import Row
from report import Table, machine

# The section's place in docs/benchmarks.md.
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"

CHARTS = {
    "accuracy_time": "Error of the predicted noise over time",
    "accuracy_bits": "Accuracy against bits per weight",
    "accuracy_digits": "Sampled digits",
}


def rise(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def head(row: Row) -> list[str]:
    what = row["what"]
    return [f"int{what['bits']}", what["method"], f"{row['bits_per_weight']:.3f}"]


def errors(row: Row) -> list[str]:
    """Formats the errors: average, and at the first timestep."""
    return [f"{mean(row['errors']):.4f}", f"{row['errors'][0]:.4f}"]


def text_table(results: dict[str, Any]) -> Table:
    found = results["text"]
    shares = list(found["loss"])
    body = [head(row) + [rise(row["rise"][share]) for share in shares] for row in found["rows"]]
    losses = ", ".join(f"{loss:.4f} at {share} %" for share, loss in found["loss"].items())
    note = f"Rise of the negative log-likelihood over bf16, in nats per masked character. bf16 has {losses}."
    heads = ["bits", "method", "bits/weight", *(f"{share} % masked" for share in shares)]
    return Table("", "Masked text model", heads, body, note)


def digits_table(results: dict[str, Any]) -> Table:
    found = results["digits"]
    body = [[*head(row), *errors(row), rise(row.get("frechet"), 3)] for row in found["rows"]]
    note = (
        f"Error of the predicted noise, |noise - bf16's|^2 / |bf16's|^2, over timesteps "
        f"{found['bins'][0]} to {found['bins'][-1]}; change of the Frechet distance (64 pixels) of "
        f"{results['samples']} DDIM-50 samples to the real digits, from "
        f"{found['frechet']:.3f} with bf16."
    )
    first = f"at t = {found['bins'][0]}"
    heads = ["bits", "method", "bits/weight", "error", first, "Frechet"]
    return Table("", "Digits", heads, body, note)


def variants_table(results: dict[str, Any], key: str, title: str, note: str) -> Table:
    body = [[row["what"]["method"], f"{row['bits_per_weight']:.3f}", *errors(row)] for row in results[key]]
    first = f"at t = {results['digits']['bins'][0]}"
    return Table("", title, ["", "bits/weight", "error", first], body, note)


def mixed_table(results: dict[str, Any]) -> Table:
    body = []
    for row in results["mixed"]:
        what = row["what"]
        formats = ", ".join(f"{count} {name}" for name, count in row["formats"].items())
        figures = [rise(x) for x in row["rise"].values()] if "rise" in row else errors(row)
        last = [] if "rise" in row else [rise(row.get("frechet"), 3)]
        body.append([what["model"], what["method"], f"{row['bits_per_weight']:.3f}", formats, *figures, *last])
    body.sort(key=lambda row: row[0] != "text")
    note = (
        "The same average number of bits, reached with small groups, with biases, or with a budget "
        "(`avg_bits: 3`) that gives some tensors 4 bits. Text: rise of the loss with 25, 50 and 75 % masked; "
        "digits: error of the predicted noise, on average and at the first timestep, and change of the Frechet "
        "distance."
    )
    heads = ["model", "method", "bits/weight", "tensors", "25 % or error", "50 % or first", "75 % or Frechet"]
    return Table("", "Mixed formats", heads, body, note)


def activations_table(results: dict[str, Any]) -> Table:
    rows = results["activations"]
    kinds = list(rows[0]["figures"]) if rows else []
    body = [
        [row["what"]["model"], row["what"]["format"], *(f"{row['figures'][kind]:.4f}" for kind in kinds)]
        for row in rows
    ]
    note = (
        "Digits: mean error of the predicted noise; text: rise of the loss with 50 % masked. Static ranges "
        "come from calibration inputs, one for each group of timesteps; dynamic ranges are computed for each token."
    )
    return Table("", "Rounded activations", ["model", "format", *kinds], body, note)


def overhead_table(results: dict[str, Any]) -> Table:
    found = results["overhead"]
    plain = found["seconds"]["lsq"]
    body = [
        [name, f"{seconds:.3f}", f"{found['weights'] / seconds / 1e6:.0f}", f"{seconds / plain - 1:+.0%}"]
        for name, seconds in found["seconds"].items()
    ]
    note = (
        f"Quantizing {found['weights'] / 1e6:.0f} million random weights (matrices of 4096 x 2048) to INT4, "
        "the best of several rounds in turns; the calibration is in memory. Only for gptq it has Hessians, one of "
        "2048 channels per matrix, which must be factored. Output errors are measured as well."
    )
    return Table("", "Time that a calibration takes", ["", "s", "M weights/s", "more"], body, note)


def analysis_table(results: dict[str, Any]) -> Table:
    found = results["overhead"]["analysis"]
    names = {"wall": "wall clock", "cpu": "all cores"}
    body = [
        [
            names[what],
            f"{found['quantize'][what]:.3f}",
            f"{found['analyze'][what]:.3f}",
            f"{found['analyze'][what] / found['quantize'][what]:.1%}",
        ]
        for what in ("wall", "cpu")
    ]
    note = (
        "Trying all candidate formats on a sample of each tensor's rows, the first step of a budget, compared with "
        "quantizing the same file to INT4; the best of several rounds in turns."
    )
    return Table("", "Time that an analysis takes", ["s", "quantize", "analyze", "part"], body, note)


def tables(results: dict[str, Any]) -> list[Table]:
    """Returns all tables that have rows."""
    gptq = "INT2 by gptq on digits."
    made = [
        text_table(results),
        digits_table(results),
        variants_table(results, "time", "What a calibration sees of time", gptq),
        variants_table(results, "groups", "Sizes of groups", gptq),
        mixed_table(results),
        activations_table(results),
        overhead_table(results),
        analysis_table(results),
    ]
    return [table for table in made if table.rows]


def missing(results: dict[str, Any]) -> list[str]:
    """Lists the rows that this library could not fill."""
    by_reason: dict[str, list[str]] = {}
    for what, reason in results["missing"].items():
        by_reason.setdefault(reason, []).append(what)
    return [f"- not measured, as {reason}: {'; '.join(what)}" for reason, what in by_reason.items()]


def text(results: dict[str, Any]) -> str:
    """accuracy.txt."""
    parts = ["\n".join([results["command"], *machine(results)])]
    parts += [table.text() for table in tables(results)]
    if results["missing"]:
        parts.append("\n".join(missing(results)))
    return "\n\n\n".join(parts) + "\n"


def section(results: dict[str, Any], charts: list[str]) -> str:
    """For docs/benchmarks.md."""
    parts = [
        BEGIN,
        "## Accuracy",
        f"`{results['command']}` wrote this section, with arrowquant {results['version']} at "
        f"{results['commit']}, {results['date']}. The models are in examples/models; all "
        "linear layers of their blocks are quantized, in groups of 128 unless stated otherwise. Bits per weight include "
        "scales and biases. Everything is seeded: another run gives the same tables.",
    ]
    parts += [f"![{CHARTS[name]}](benchmarks/{name}.png)" for name in charts]
    parts += [table.markdown() for table in tables(results)]
    parts += missing(results)
    return "\n\n".join([*parts, END])


def sections(page: str) -> list[str]:
    """Returns the sections of a page that stand between markers."""
    return [found[0] for found in re.finditer(r"(?s)<!-- (\w+): begin -->.*?<!-- \1: end -->", page)]


def with_section(page: str, new: str) -> str:
    """Returns the page with the section replaced that has the same begin and end markers, or appended if it
    had none."""
    begin, end = new.splitlines()[0], new.splitlines()[-1]
    if begin in page and end in page:
        old = page[page.index(begin) : page.index(end) + len(end)]
        return page.replace(old, new)
    return page.rstrip("\n") + f"\n\n{new}\n"


def write_docs(results: dict[str, Any], output: Path, docs: Path) -> None:
    """The section, and its charts."""
    (docs / "benchmarks").mkdir(exist_ok=True)
    charts = [name for name in CHARTS if (output / f"{name}.png").exists()]
    for name in charts:
        shutil.copyfile(output / f"{name}.png", docs / f"benchmarks/{name}.png")
    page = docs / "benchmarks.md"
    old = page.read_text() if page.exists() else "# Benchmarks\n"
    page.write_text(with_section(old, section(results, charts)))


def write_mixed(results: dict[str, Any], docs: Path) -> None:
    """Replaces only the table of mixed formats in its section."""
    page = docs / "benchmarks.md"
    text = page.read_text()
    by = (
        f"`python benches/accuracy.py --mixed --samples {results['samples']}` wrote this table, at "
        f"{results['commit']}."
    )
    new = f"{mixed_table(results).markdown()}\n\n{by}\n\n"
    text = re.sub(r"(?s)### Mixed formats\n.*?(?=\n### )\n", "", text)
    page.write_text(text.replace("### Rounded activations\n", f"{new}### Rounded activations\n", 1))

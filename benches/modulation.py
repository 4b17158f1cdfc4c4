"""Measures the cost of quantizing modulation: the linear layers that compute shift, scale and gate of each
block from timestep and class. They are a third of the blocks' weights in the digits' model."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from accuracy_report import rise, with_section
from measure import Row
from report import Table

if TYPE_CHECKING:
    from accuracy import Bench

# The section's place in docs/accuracy.md.
BEGIN, END = "<!-- modulation: begin -->", "<!-- modulation: end -->"

MODULATES = "adaLN_modulation"

# Bits of a weight that is kept: the model is bf16.
KEPT = 16

# Bits of the other linears, and of those that modulate.
PAIRS = (
    *((KEPT, modulation) for modulation in (4, 2)),
    *((others, modulation) for others in (4, 2) for modulation in (2, 4, 8, KEPT)),
)

# All linears alike, at sizes between those of the pairs: bits and weights in a group.
GROUP = 128
ALIKE = ((4, 32), (4, 16), (8, GROUP), (2, 32), (2, 16))


def named(bits: int) -> str:
    return "kept" if bits == KEPT else f"int{bits}"


def measure(bench: Bench) -> list[Row]:
    """Rows of all pairs, and of uniform formats."""
    rows: list[Row] = []
    for others, modulation in PAIRS:
        of = {True: modulation, False: others}
        kept = {name for name in bench.digits.network.blocks() if of[MODULATES in name] == KEPT}
        rules = [] if modulation == KEPT else [f"blocks.*{MODULATES}*.weight=bits:{modulation}"]
        bits = others if others != KEPT else modulation
        what = {"others": named(others), "modulation": named(modulation)}
        rows.append(row(bench, what, bits, GROUP, rules, kept))
    for bits, group in ALIKE:
        name = named(bits) if group == GROUP else f"{named(bits)}, groups of {group}"
        rows.append(row(bench, {"others": name, "modulation": "the same"}, bits, group, [], set()))
    return rows


def row(
    bench: Bench, what: dict[str, str], bits: int, group: int, rules: list[str], kept: set[str]
) -> Row:
    """Errors with and without a calibration, and samples without one."""
    from methods import GPTQ, LSQ, SNR, Method

    trial, engine = bench.digits, bench.engines["digits"]
    size = {name: trial.network.weights[name].size for name in trial.network.blocks()}
    found: Row = {"what": what, "errors": {}}
    for name, base, calibration in (("lsq", LSQ, ""), ("gptq", GPTQ | SNR, "all")):
        title = f"{what['others']}, modulation {what['modulation']}"
        bench.say(f"digits: {name}, {title}")
        method = Method(name, base | {"rules": rules}, calibration, group)
        made = engine.quantize(bits, method, kept)
        network = trial.with_weights(made.weights)
        found["errors"][name] = trial.noise_errors(network)
        raw = sum(size[name] for name in kept)
        quantized = sum(size.values()) - raw
        found["bits_per_weight"] = (made.bits_per_weight * quantized + KEPT * raw) / (quantized + raw)
        if name == "lsq":
            found["frechet"] = bench.sampled(title, network) - bench.full
    return found


def table(results: dict[str, Any]) -> Table:
    body = [
        [
            row["what"]["others"],
            row["what"]["modulation"],
            f"{row['bits_per_weight']:.2f}",
            f"{mean(row['errors']['lsq']):.5f}",
            rise(row["frechet"], 3),
            f"{mean(row['errors']['gptq']):.5f}",
        ]
        for row in results["modulation"]
    ]
    note = (
        f"Bits per weight over all linear layers of the blocks, {results['share']:.0%} of whose weights are modulation; "
        "kept weights count 16; groups of 128 unless stated otherwise. Error of the predicted noise with `lsq` "
        "without a calibration, and with `gptq` and one (`snr`); change of the Fréchet distance of "
        f"{results['samples']} samples with `lsq`, from {results['frechet']:.3f} with bf16."
    )
    heads = ["attention and MLP", "modulation", "bits/weight", "`lsq`", "Fréchet", "`gptq`"]
    return Table("", "Measured", heads, body, note)


def all_results(bench: Bench) -> dict[str, Any]:
    """Measures everything in the table."""
    bench.full = bench.sampled("FP", bench.digits.network)
    weights = bench.digits.network.weights
    blocks = bench.digits.network.blocks()
    modulating = sum(weights[name].size for name in blocks if MODULATES in name)
    return {
        "modulation": measure(bench),
        "share": modulating / sum(weights[name].size for name in blocks),
        "frechet": bench.full,
        "samples": bench.samples,
    }


def write_docs(results: dict[str, Any], docs: Path) -> None:
    """Writes the table into docs/accuracy.md."""
    page = docs / "accuracy.md"
    by = f"`{results['command']}` wrote this table, at {results['commit']}."
    section = "\n\n".join([BEGIN, table(results).markdown().split("\n\n", 1)[1], by, END])
    page.write_text(with_section(page.read_text(), section))

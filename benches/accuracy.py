"""Measures how much of two trained models survives quantization: see benches/README.md.

    python benches/accuracy.py
"""

from __future__ import annotations

import os

# Threads are ours; BLAS on several would be in their way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import datetime
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import accuracy_charts
import accuracy_report
import modulation
from machine import commit, machine
from measure import Failed, Progress, Row, run
from networks import Array, Dit, Mdlm, Observe
from programs import ROOT, target_folder
from quality import DitTrial, MdlmTrial

if TYPE_CHECKING:
    import methods

MODELS = ROOT / "examples/models"
BITS = (8, 4, 2)

# What is also sampled from, which takes minutes each: bits and method; and rows of the picture.
SAMPLED = {
    (8, "minmax"), (4, "gptq"), (2, "minmax"), (2, "lsq"), (2, "gptq, affine"),
    (2, "gptq + time-aware"),
}
SAMPLED_QUICK = {(4, "lsq"), (2, "lsq")}
PICTURED = 20

# Weights and activations: bits of both.
ROUNDED = ((4, 8), (8, 8), (4, 4))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute; no docs")
    parser.add_argument("--mixed", action="store_true", help="the table of mixed formats alone, in its place")
    parser.add_argument("--modulation", action="store_true", help="the table of docs/accuracy.md on modulation alone")
    parser.add_argument("--samples", type=int, metavar="N", help="digits to sample [default: 2000; 100]")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="[default: target/accuracy]")
    parser.add_argument("--render", type=Path, metavar="FILE.json", help="only write the pages again")
    return parser.parse_args()


def load_library(say: Progress) -> None:
    """Makes `import arrowquant` find this repository's package, with the library that
    ARROWQUANT_LIBRARY names or else that which is built now."""
    if "ARROWQUANT_LIBRARY" not in os.environ:
        say("cargo build --release --lib")
        run(["cargo", "build", "--release", "--quiet", "--lib"], cwd=ROOT)
        suffix = "dylib" if sys.platform == "darwin" else "so"
        library = target_folder() / f"release/libarrowquant.{suffix}"
        os.environ["ARROWQUANT_LIBRARY"] = str(library)
    sys.path.insert(0, str(ROOT / "bindings/python"))


@dataclass
class Bench:
    """What is measured, and what was found so far."""

    digits: DitTrial
    text: MdlmTrial
    samples: int
    quick: bool
    say: Progress
    engines: dict[str, methods.Engine]
    #: Frechet distance of the image model as it was trained.
    full: float = 0.0
    #: Why rows are not there, by what they would have shown.
    missing: dict[str, str] = field(default_factory=dict)
    #: Rows of digits as they were sampled.
    pictures: dict[str, Array] = field(default_factory=dict)

    def quantized(self, engine: methods.Engine, bits: int, method: methods.Method) -> Any:
        """Weights, or None when the library cannot make them."""
        from methods import Missing

        try:
            return engine.quantize(bits, method)
        except Missing as reason:
            self.missing[f"{engine.trial.name}, int{bits} {method.name}"] = str(reason)
            return None

    def sampled(self, name: str, network: Dit) -> float:
        """The Frechet distance of samples, of which the first are kept for the picture."""
        self.say(f"sampling {self.samples} digits: {name}")
        samples = self.digits.samples(network, self.samples)
        self.pictures[name] = samples[:PICTURED]
        return self.digits.distance(samples)


def check(bench: Bench) -> None:
    """Forward passes must be those that the files' figures came from."""
    bench.say("checking the forward passes")
    apart = bench.digits.check()
    if apart > 1e-4:
        raise Failed(f"{bench.digits.path}: predicted noise is off by {apart:.2g}")


def text_rows(bench: Bench) -> dict[str, Any]:
    """Masked likelihood of the text model by bits and method."""
    from methods import METHODS

    full = bench.text.losses(bench.text.network)
    for share, loss in full.items():
        stored = bench.text.stored[share]
        if not bench.quick and abs(loss - stored) > 2e-4:
            raise Failed(f"{bench.text.path}: loss at {share} % is {loss:.4f}, stored {stored:.4f}")
    rows: list[Row] = []
    for bits in BITS:
        for method in METHODS:
            bench.say(f"text: int{bits} {method.name}")
            found = bench.quantized(bench.engines["text"], bits, method)
            if found is None:
                continue
            losses = bench.text.losses(bench.text.with_weights(found.weights))
            rows.append(
                {
                    "what": {"bits": bits, "method": method.name},
                    "bits_per_weight": found.bits_per_weight,
                    "rise": {str(share): loss - full[share] for share, loss in losses.items()},
                }
            )
    return {"loss": {str(share): loss for share, loss in full.items()}, "rows": rows}


def digit_row(bench: Bench, bits: int, method: methods.Method) -> tuple[Row, Dit] | None:
    """The noise's errors with one method, and the network."""
    bench.say(f"digits: int{bits} {method.name}")
    found = bench.quantized(bench.engines["digits"], bits, method)
    if found is None:
        return None
    network = bench.digits.with_weights(found.weights)
    row = {
        "what": {"bits": bits, "method": method.name},
        "bits_per_weight": found.bits_per_weight,
        "errors": bench.digits.noise_errors(network),
    }
    return row, network


def digit_rows(bench: Bench) -> dict[str, Any]:
    """Errors and samples of the image model by bits and method."""
    from methods import METHODS

    full = bench.full = bench.sampled("FP", bench.digits.network)
    rows: list[Row] = []
    for bits in BITS:
        for method in METHODS:
            made = digit_row(bench, bits, method)
            if made is None:
                continue
            row, network = made
            if (bits, method.name) in (SAMPLED_QUICK if bench.quick else SAMPLED):
                row["frechet"] = bench.sampled(f"INT{bits} {method.name}", network) - full
            rows.append(row)
    return {"bins": bench.digits.bins, "frechet": full, "rows": rows}


def digit_variants(bench: Bench, variants: tuple[methods.Method, ...]) -> list[Row]:
    """INT2 on digits."""
    made = [digit_row(bench, 2, method) for method in variants]
    return [row for row, _ in filter(None, made)]


def mixed_rows(bench: Bench) -> list[Row]:
    """Both models at 3 bits a weight, uniform and mixed."""
    from methods import MIXED

    full = bench.text.losses(bench.text.network)
    rows: list[Row] = []
    for method in MIXED:
        if bench.quick and method.name != "lsq, mixed":
            continue
        for name, trial in (("text", bench.text), ("digits", bench.digits)):
            bench.say(f"{name}: {method.name}")
            found = bench.quantized(bench.engines[name], 2, method)
            if found is None:
                continue
            row: Row = {
                "what": {"model": name, "method": method.name},
                "bits_per_weight": found.bits_per_weight,
                "formats": dict(sorted(found.formats.items())),
            }
            if isinstance(trial, MdlmTrial):
                losses = trial.losses(trial.with_weights(found.weights))
                row["rise"] = {str(share): loss - full[share] for share, loss in losses.items()}
            else:
                network = trial.with_weights(found.weights)
                row["errors"] = trial.noise_errors(network)
                if method.name.startswith("gptq") and not bench.quick:
                    row["frechet"] = bench.sampled(method.name, network) - bench.full
            rows.append(row)
    return rows


def activation_rows(bench: Bench) -> list[Row]:
    """Both models with rounded activations, on weights by the best method that there is."""
    import methods

    rows: list[Row] = []
    by_name = {method.name: method for method in methods.METHODS}
    for name, trial in (("digits", bench.digits), ("text", bench.text)):
        ranges = {n: methods.ranges(trial, n) for n in methods.ACTIVATIONS.values() if n}

        def measured(network: Dit | Mdlm, observe: Observe | None) -> float:
            if isinstance(trial, DitTrial):
                return float(np.mean(trial.noise_errors(network, observe)))
            return trial.losses(network, observe, (50,))[50] - full

        full = 0.0 if isinstance(trial, DitTrial) else trial.losses(trial.network, None, (50,))[50]
        for weights, bits in ROUNDED:
            bench.say(f"{name}: W{weights}A{bits}")
            made = (bench.quantized(bench.engines[name], weights, by_name[best]) for best in ("gptq", "lsq"))
            network = trial.with_weights(next(filter(None, made)).weights)
            row: Row = {"what": {"model": name, "format": f"W{weights}A{bits}"}, "figures": {}}
            row["figures"]["weights only"] = measured(network, None)
            for kind, groups in methods.ACTIVATIONS.items():
                if groups:
                    observe = methods.static(ranges[groups], groups, bits)
                else:
                    observe = methods.dynamic(trial, bits)
                row["figures"][kind] = measured(network, observe)
            rows.append(row)
    return rows


def overhead_seconds(quick: bool, say: Progress) -> dict[str, Any]:
    import overhead

    say("time that a calibration takes")
    return overhead.measure(quick)


def measure_all(args: argparse.Namespace, say: Progress) -> tuple[dict[str, Any], dict[str, Array]]:
    """All results, and rows of sampled digits."""
    load_library(say)
    import arrowquant
    import methods

    digits, text = DitTrial(MODELS, args.quick), MdlmTrial(MODELS, args.quick)
    bench = Bench(
        digits=digits,
        text=text,
        samples=args.samples or (100 if args.quick else 2000),
        quick=args.quick,
        say=say,
        engines={
            "digits": methods.Engine(digits, say),
            "text": methods.Engine(text, say),
        },
    )
    check(bench)
    command = shlex.join(["python", "benches/accuracy.py", *sys.argv[1:]])
    if args.modulation:
        return modulation.all_results(bench) | {"command": command, "commit": commit()}, {}
    if args.mixed:
        bench.full = bench.sampled("FP", bench.digits.network)
        return {"mixed": mixed_rows(bench), "commit": commit(), "samples": bench.samples}, {}
    results = {
        "machine": machine(arrowquant.isa_name()),
        "date": datetime.date.today().isoformat(),
        "command": command,
        "version": arrowquant.__version__,
        "commit": commit(),
        "quick": args.quick,
        "samples": bench.samples,
        "text": text_rows(bench),
        "digits": digit_rows(bench),
        "mixed": mixed_rows(bench),
        "activations": activation_rows(bench),
        "time": digit_variants(bench, methods.TIME),
        "groups": digit_variants(bench, methods.GROUPS),
        "overhead": overhead_seconds(args.quick, say),
        "missing": bench.missing,
    }
    return results, bench.pictures


def main() -> int:
    args = arguments()
    try:
        output = args.output or target_folder() / "accuracy"
        output.mkdir(parents=True, exist_ok=True)
        pictures: dict[str, Array] = {}
        if args.render:
            results = json.loads(args.render.read_text())
        else:
            results, pictures = measure_all(args, Progress())
        if args.modulation:
            print(modulation.table(results).text())
            if not args.quick:
                modulation.write_docs(results, ROOT / "docs")
            return 0
        if args.mixed:
            accuracy_report.write_mixed(results, ROOT / "docs")
            print(accuracy_report.mixed_table(results).text())
            return 0
        (output / "accuracy.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / "accuracy.txt").write_text(accuracy_report.text(results))
        accuracy_charts.draw(results, pictures, output)
        print(accuracy_report.text(results))
        print(f"written to {output}")
        if not results["quick"]:
            accuracy_report.write_docs(results, output, ROOT / "docs")
            print(f"and to {ROOT / 'docs/benchmarks.md'}")
    except (Failed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

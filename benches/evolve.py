"""Searches for a plan by what a sampler makes of it: see benches/README.md.

    python benches/evolve.py
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
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from accuracy import MODELS, load_library
from accuracy_report import with_section
from machine import commit, machine
from measure import Failed, Progress
from networks import Array, Dit
from programs import ROOT, target_folder
from quality import DitTrial
from report import Table
from report import machine as machine_lines

# What the search may use: 3 bits a weight, weights alone.
SETTINGS: dict[str, Any] = {"avg_bits": 3.0, "method": "lsq", "min_cosine": "none", "seed": 1}

# Images whose distance to those of the unquantized model is the fitness, from noise of this seed.
IMAGES, STEPS, SEED = 100, 10, 100

# Noise that the search never saw.
UNSEEN = (201, 202, 203)

BEGIN, END = "<!-- evolve: begin -->", "<!-- evolve: end -->"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population", type=int, default=20, metavar="N")
    parser.add_argument("--generations", type=int, default=15, metavar="N")
    parser.add_argument("--quick", action="store_true", help="two small generations; no docs")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="[default: target/evolve]")
    return parser.parse_args()


class Judge:
    """The fitness of plans: the distance of a quantized model's samples from the model's own."""

    def __init__(self, trial: DitTrial, say: Progress, quick: bool) -> None:
        import arrowquant

        # Images and steps that plans are tried with, and those from noise that was never seen; more
        # images for the Frechet distance.
        self.tried, self.checked, self.many = ((10, 4), (10, 4), 100) if quick else ((IMAGES, STEPS), (200, 50), 1000)
        self.trial, self.say, self.asked = trial, say, 0
        self.arrowquant = arrowquant
        self.blocks = list(trial.network.blocks())
        self.own: dict[tuple[int, int, int], Array] = {}

    def network(self, plan: Any) -> Dit:
        """The model, quantized by a plan."""
        packed, _ = plan.run_to_bytes(self.trial.path, threads=1)
        with self.arrowquant.open(packed) as model:
            return self.trial.with_weights({name: model[name].dequantize() for name in self.blocks})

    def distance(self, network: Dit, seed: int, images: int, steps: int) -> float:
        """Mean squared distance of samples to those of the original model, from the same noise."""
        key = seed, images, steps
        if key not in self.own:
            self.own[key] = self.trial.samples(self.trial.network, images, None, seed, steps)
        samples = self.trial.samples(network, images, None, seed, steps)
        return float(np.mean((samples - self.own[key]) ** 2))

    def __call__(self, plan: Any) -> float:
        self.asked += 1
        self.say(f"plan {self.asked}")
        return -self.seen(plan)

    def seen(self, plan: Any) -> float:
        """Distance on the noise used by the search."""
        return self.distance(self.network(plan), SEED, *self.tried)

    def unseen(self, plan: Any) -> dict[str, Any]:
        """The same from noise that the search never saw, by the sampler's full number of steps, and
        other figures."""
        network = self.network(plan)
        samples = self.trial.samples(network, self.many, steps=self.checked[1])
        return {
            "distances": [self.distance(network, seed, *self.checked) for seed in UNSEEN],
            "error": float(np.mean(self.trial.noise_errors(network))),
            "frechet": self.trial.distance(samples),
            "formats": dict(sorted(Counter(entry.format for entry in plan if entry.name in self.blocks).items())),
            "bytes": sum(entry.bytes for entry in plan if entry.name in self.blocks),
        }


def measure(args: argparse.Namespace, say: Progress) -> dict[str, Any]:
    load_library(say)
    import arrowquant

    trial = DitTrial(MODELS, args.quick)
    judge = Judge(trial, say, args.quick)
    others = [name for name in trial.network.weights if name not in judge.blocks]
    settings = SETTINGS | {"rules": [f"{name}=keep" for name in others]}
    population, generations = (6, 2) if args.quick else (args.population, args.generations)
    found = arrowquant.evolve(
        trial.path, judge, population=population, generations=generations, **settings
    )
    plans = {
        "the budget's plan": arrowquant.Plan.create(trial.path, **settings),
        "the search's plan": found.plan,
    }
    uniform = {key: value for key, value in settings.items() if key != "avg_bits"} | {"bits": 2}
    plans["int2 g16 everywhere"] = arrowquant.Plan.create(trial.path, **uniform, group_size=16)
    plans["int2 g32 affine everywhere"] = arrowquant.Plan.create(
        trial.path, **uniform, group_size=32, scheme="affine"
    )
    rows = []
    for name, plan in plans.items():
        say(f"unseen noise: {name}")
        rows.append({"what": name, "fitness": -judge.seen(plan), **judge.unseen(plan)})
    return {
        "machine": machine(arrowquant.isa_name()),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benches/evolve.py", *sys.argv[1:]]),
        "version": arrowquant.__version__,
        "commit": commit(),
        "search": found.to_dict(),
        "population": population,
        "tried": judge.tried,
        "checked": judge.checked,
        "many": judge.many,
        "rows": rows,
    }


def table(results: dict[str, Any]) -> Table:
    heads = ["plan", "tensors", "bytes", "seen noise", *(f"unseen {i + 1}" for i in range(len(UNSEEN))), "error", "Frechet"]
    body = [
        [
            row["what"],
            ", ".join(f"{count} {name}" for name, count in row["formats"].items()),
            str(row["bytes"]),
            f"{-row['fitness']:.5f}",
            *(f"{distance:.5f}" for distance in row["distances"]),
            f"{row['error']:.4f}",
            f"{row['frechet']:.3f}",
        ]
        for row in results["rows"]
    ]
    search = results["search"]
    (images, steps), (others, more) = results["tried"], results["checked"]
    note = (
        f"Digits, without a calibration (`lsq`), linear layers of blocks at {SETTINGS['avg_bits']} bits per weight. The "
        f"fitness, evaluated for {search['generations'][-1]['evaluations']} plans in {len(search['generations'])} generations of "
        f"{results['population']}, is minus the mean squared distance between {images} images (DDIM, {steps} steps) and "
        f'those of the unquantized model from the same noise. "Unseen" is the distance for {others} images from other '
        f"noise, with {more} steps. The last columns were not part of the search: error of the predicted noise as above, "
        f"and Frechet distance to real digits (of {results['many']} images; the distance itself, not its change)."
    )
    return Table("", "A search by samples", heads, body, note)


def chart(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    generations = results["search"]["generations"]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for key, name in (("best", "best plan"), ("mean", "mean of parents")):
        axes.plot([g["generation"] for g in generations], [-g[key] for g in generations], marker="o", label=name)
    axes.set(xlabel="generation", ylabel="squared distance of samples", title="A search by samples")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def write_docs(results: dict[str, Any], output: Path) -> None:
    docs = ROOT / "docs"
    (docs / "benchmarks").mkdir(exist_ok=True)
    (docs / "benchmarks/evolve.png").write_bytes((output / "evolve.png").read_bytes())
    page = docs / "benchmarks.md"
    parts = [
        BEGIN,
        "## Searching for a plan",
        f"`{results['command']}` wrote this section, with arrowquant {results['version']} at "
        f"{results['commit']}, {results['date']}.",
        "![Fitness by generation](benchmarks/evolve.png)",
        table(results).markdown(),
        END,
    ]
    page.write_text(with_section(page.read_text(), "\n\n".join(parts)))


def main() -> int:
    args = arguments()
    output = args.output or target_folder() / "evolve"
    output.mkdir(parents=True, exist_ok=True)
    try:
        results = measure(args, Progress())
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    (output / "evolve.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n".join([results["command"], *machine_lines(results), "", table(results).text(), ""])
    (output / "evolve.txt").write_text(text)
    chart(results, output / "evolve.png")
    print(text)
    if not args.quick:
        write_docs(results, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures arrowquant, and writes tables, JSON and charts: see benches/README.md.

    python benches/run.py --all
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import accuracy_report
import charts
import report
from machine import commit, machine
from measure import Failed, Progress
from models import SIZES, NoSpace
from programs import ROOT, Programs, target_folder
from sections import Bench, measure_all

SECTIONS = ("speed", "simd", "parallel", "memory")
DOCS = ROOT / "docs"


def arguments() -> argparse.Namespace:
    def listed(text: str, known: list[str]) -> list[str]:
        wanted = text.split(",")
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        # In our order, each once.
        return [name for name in known if name in wanted]

    def sections(text: str) -> list[str]:
        return listed(text, list(SECTIONS))

    def sizes(text: str) -> list[str]:
        return listed(text, list(SIZES))

    def bits(text: str) -> list[int]:
        return [int(width) for width in listed(text, ["2", "4", "8"])]

    def count(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError("at least 1")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every section; rewrites docs/benchmarks.md")
    which.add_argument("--only", type=sections, metavar="SECTIONS", help="some of " + ",".join(SECTIONS))
    which.add_argument("--render", type=Path, metavar="FILE.json", help="only write the pages again")
    parser.add_argument("--quick", action="store_true", help="a small model, in a minute; no docs")
    parser.add_argument("--model-size", type=sizes, metavar="SIZES", help="some of 100M,600M,7B")
    parser.add_argument("--bits", type=bits, help="some of 2,4,8")
    parser.add_argument("--runs", type=count, help="of each program [default: 3; 2 when quick]")
    parser.add_argument("--skip-python", action="store_true", help="without numpy and torch")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="[default: target/bench]")
    parser.add_argument("--workdir", type=Path, metavar="FOLDER", help="for models [default: target]")
    return parser.parse_args()


def measured(args: argparse.Namespace, target: Path) -> dict[str, Any]:
    """All results."""
    say = Progress()
    workdir = args.workdir or target
    workdir.mkdir(parents=True, exist_ok=True)
    sizes = args.model_size or (["10M"] if args.quick else ["100M", "600M", "7B"])
    whole = not (args.quick or args.only or args.model_size or args.bits or args.skip_python)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=workdir) as folder:
        programs = Programs.build(target, Path(folder), say)
        bench = Bench(
            programs=programs,
            folder=Path(folder),
            sizes=[SIZES[size] for size in sizes],
            bits=args.bits or [2, 4, 8],
            runs=args.runs or (2 if args.quick else 3),
            quick=args.quick,
            skip_python=args.skip_python,
            say=say,
        )
        if not args.skip_python:
            say("comparing what numpy makes with what the library makes")
            programs.check_yardsticks()
        return {
            "machine": machine(programs.isa()),
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(["python", "benches/run.py", *sys.argv[1:]]),
            "version": programs.version(),
            "commit": commit(),
            # Only such results go to docs/.
            "whole": whole,
            "sections": measure_all(bench, args.only or list(SECTIONS)),
        }


def write(results: dict[str, Any], output: Path) -> None:
    """Everything, into one folder; and the page in docs/ where results are whole."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "results.txt").write_text(report.text(results))
    names = charts.draw(results, output)
    (output / "benchmarks.md").write_text(report.markdown(results, names, ""))
    print(report.text(results))
    print(f"written to {output}")
    if results["whole"]:
        (DOCS / "benchmarks").mkdir(exist_ok=True)
        for name in names:
            (DOCS / f"benchmarks/{name}.png").write_bytes((output / f"{name}.png").read_bytes())
        page = DOCS / "benchmarks.md"
        new = report.markdown(results, names, "benchmarks/")
        # Those of accuracy.py and evolve.py stay.
        for kept in accuracy_report.sections(page.read_text()) if page.exists() else []:
            new = accuracy_report.with_section(new, kept)
        page.write_text(new)
        print(f"and to {DOCS / 'benchmarks.md'}")


def end(*_: object) -> None:
    """As Ctrl-C does: through all that cleans up."""
    raise KeyboardInterrupt


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, end)
    try:
        target = target_folder()
        results = json.loads(args.render.read_text()) if args.render else measured(args, target)
        write(results, args.output or target / "bench")
    except (Failed, NoSpace, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended; files are removed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures how long callers are left without a sign of life, and how long a run takes to stop.

    python benches/cancel.py [--only 600M,tile,kept] [--threads 1,2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
from measure import Failed, Progress
from models import SIZES, Model, NoSpace
from programs import ROOT, Programs, target_folder

# A tensor of one tile, the largest there is in 4 bits; kept, it is four.
ONE_TILE = Model("one tensor", 1, 4096, 65536, bare=True)

# Models and settings by name.
CASES: dict[str, tuple[Model, dict[str, Any]]] = {
    **{name: (model, {"bits": 4}) for name, model in SIZES.items()},
    "tile": (ONE_TILE, {"bits": 4}),
    "kept": (ONE_TILE, {"keep": ["*"]}),
}

# Stopped after these shares of the time that a whole run takes.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)

# Told bytes done and bytes in all; False stops.
Tell = Callable[[int, int], bool]


def timed(work: Callable[[Tell], Any], stop_after: float | None) -> dict[str, float]:
    """Seconds of a run: in all, the longest without a call, from the last call to the end, and from
    the call that stopped it to the end."""
    import arrowquant

    start = time.perf_counter()
    calls = [start]

    def tell(done: int, total: int) -> bool:
        calls.append(time.perf_counter())
        return stop_after is None or calls[-1] - start < stop_after

    stopped = False
    try:
        work(tell)
    except arrowquant.Cancelled:
        stopped = True
    end = time.perf_counter()
    timing = {
        "seconds": end - start,
        "calls": len(calls) - 1,
        "silence": max((b - a for a, b in pairwise(calls)), default=0.0),
        "finish": end - calls[-1],
    }
    return timing | ({"stop": end - calls[-1]} if stopped else {})


def works(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """What works for a while, as functions of a number of threads. Each needs the one before."""
    import arrowquant

    source, packed = folder / "model.safetensors", folder / "packed.parquet"
    new, back = folder / "new.parquet", folder / "back.safetensors"

    def removing(path: Path, work: Callable[[Tell], Any]) -> Callable[[Tell], Any]:
        def run(tell: Tell) -> None:
            path.unlink(missing_ok=True)
            work(tell)

        return run

    arrowquant.quantize(source, packed, **settings)
    yield "quantize", lambda threads: removing(
        new, lambda tell: arrowquant.quantize(source, new, progress=tell, threads=threads, **settings)
    )
    new.unlink(missing_ok=True)
    with arrowquant.open(packed) as model:
        yield "verify", lambda threads: lambda tell: model.verify(progress=tell, threads=threads)
        yield "verify --against", lambda threads: lambda tell: model.verify(
            source, progress=tell, threads=threads
        )
        yield "dequantize", lambda threads: removing(
            back, lambda tell: model.dequantize(back, progress=tell, threads=threads)
        )
    back.unlink(missing_ok=True)


def measured(model: Model, settings: dict[str, Any], threads: list[int], folder: Path,
             say: Progress) -> list[dict[str, Any]]:
    """A row for each work and number of threads."""
    rows = []
    # Beside it what is quantized, twice, or what is decoded.
    with models.written(model, folder, 2.2):
        for name, work in works(folder, settings):
            for count in threads:
                what = " ".join(f"{key}={value}" for key, value in settings.items())
                say(f"{model.name}, {what}: {name}, {count} threads")
                whole = timed(work(count), None)
                stops = [timed(work(count), share * whole["seconds"]) for share in SHARES]
                stopped = [stop["stop"] for stop in stops if "stop" in stop]
                row = {"model": model.name, "settings": settings, "work": name, "threads": count}
                rows.append(row | whole | {"stop": max(stopped, default=None)})
    (folder / "packed.parquet").unlink()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured, in milliseconds."""
    head = ["model", "settings", "work", "threads", "calls", "run ms", "silence ms", "stop ms",
            "after the last call ms"]
    lines = [head]
    for row in rows:
        settings = " ".join(f"{key}={value}" for key, value in row["settings"].items())
        times = (row[key] for key in ("seconds", "silence", "stop", "finish"))
        lines.append(
            [row["model"], settings, row["work"], str(row["threads"]), str(row["calls"])]
            + ["-" if t is None else f"{1e3 * t:.1f}" for t in times]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "600M,tile,kept"
    parser.add_argument("--only", default=default, metavar="NAMES", help="some of " + ",".join(CASES))
    parser.add_argument("--threads", default="1,2", metavar="N,N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    parser.add_argument("--library", type=Path, metavar="FILE", help="built already; not built then")
    parser.add_argument("--workdir", type=Path, metavar="FOLDER", help="for models [default: target]")
    args = parser.parse_args()
    for wanted in args.only.split(","):
        if wanted not in CASES:
            parser.error(f"{wanted!r} is none of {', '.join(CASES)}")
    say, target = Progress(), target_folder()
    threads = [int(count) for count in args.threads.split(",")]
    workdir = args.workdir or target
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=workdir) as name:
            folder = Path(name)
            library = args.library or Programs.build(target, folder, say).library
            os.environ["ARROWQUANT_LIBRARY"] = str(library)
            sys.path.insert(0, str(ROOT / "bindings/python"))
            rows: list[dict[str, Any]] = []
            for wanted in args.only.split(","):
                rows += measured(*CASES[wanted], threads, folder, say)
    except (Failed, NoSpace, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

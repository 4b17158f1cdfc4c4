"""Programs run in turns, and what they took."""

from __future__ import annotations

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("child.py")

# A row of results: "what" says what was measured, the other keys are figures.
Row = dict[str, Any]

Argv = Sequence[str | Path]


class Failed(Exception):
    """A program that is measured, or needed for it, failed."""


@dataclass(frozen=True)
class Case:
    """One program to measure."""

    what: dict[str, Any]
    argv: Argv
    #: Removed after each run.
    output: Path
    env: dict[str, str] = field(default_factory=dict)
    #: The program does not wait until its output is on the disk.
    fsync: bool = False
    #: Too slow to run more than once.
    once: bool = False
    #: Not ours: only what ours is compared with.
    yardstick: bool = False


class Progress:
    """Says on standard error what runs now, and how long it all has gone."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        print(f"{minutes:3}:{seconds:02}  {text}", file=sys.stderr, flush=True)


def label(what: dict[str, Any]) -> str:
    """A name for what was measured, the same in every run."""
    forms = {"bits": "int{}", "threads": "threads={}"}
    return " ".join(forms.get(key, "{}").format(value) for key, value in what.items())


def run(argv: Argv, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a program printed. It ends with us, and so do those that it started."""
    with subprocess.Popen(
        argv, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        command = shlex.join(map(str, argv))
        raise Failed(f"{command}: exit code {process.returncode}\n{errors[-2000:]}")
    return printed


def environment(**more: str) -> dict[str, str]:
    """Ours without the settings of arrowquant that may be in it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("AQ_")} | more


def measure(cases: list[Case], runs: int, say: Progress) -> list[Row]:
    """Each case's times and peaks. Cases take turns, so that what slows the machine for a while slows
    all of them; a first turn only warms up."""
    took: list[list[dict[str, float]]] = [[] for _ in cases]
    for turn in range(runs + 1):
        for case, results in zip(cases, took):
            if case.once and turn != 1:
                continue
            say(f"{label(case.what)}: {f'run {turn} of {runs}' if turn else 'warming up'}")
            fsync: Argv = ["--fsync", case.output] if case.fsync else []
            printed = run(
                [sys.executable, "-I", "-S", CHILD, *fsync, *case.argv], environment(**case.env)
            )
            case.output.unlink()
            if turn:
                results.append(json.loads(printed))
    return [
        {
            "what": case.what,
            "seconds": summary([result["seconds"] for result in results]),
            "peak_bytes": summary([result["peak_bytes"] for result in results]),
        }
        | ({"yardstick": True} if case.yardstick else {})
        for case, results in zip(cases, took)
    ]


def summary(values: list[float]) -> dict[str, Any]:
    """All values, and what tables show of them."""
    median = statistics.median(values)
    return {"runs": values, "min": min(values), "median": median, "max": max(values)}

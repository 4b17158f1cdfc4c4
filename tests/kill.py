"""Kills runs at random moments, like a power cut, and checks what is left.

    python3 tests/kill.py target/release/arrowquant [--kills 100] [--seed 1] [--seconds 2]

Runs into one file and into a folder take turns. After each kill the file is the old one, the new one or
none; every part of the folder is whole; the same run leaves the bytes of an undisturbed run, and does again
at most the part that was under way, or with --restart all; what killed runs left is gone after the next
one.
Needs Python 3.9 and nothing else. Exit code 1 when something of this does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = 8
COLUMNS = 1024
# High bytes of bf16 numbers of about 0.01 to 0.1, either sign; mantissas are random.
HIGH = bytes((0x3C, 0x3D, 0xBC, 0xBD)[i % 4] for i in range(256))


def write_model(path: Path, weights: int) -> None:
    """Makes eight equal matrices."""
    rows = max(weights // (PARTS * COLUMNS), 1)
    size = 2 * rows * COLUMNS
    header = {
        f"layers.{i}.weight": {
            "dtype": "BF16",
            "shape": [rows, COLUMNS],
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(PARTS)
    }
    text = json.dumps(header).encode()
    values = bytearray(size)
    values[0::2] = os.urandom(size // 2)
    values[1::2] = os.urandom(size // 2).translate(HIGH)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(PARTS):
            file.write(values)


class Runs:
    """Runs of one program on one model."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.model = folder / "model.safetensors"
        # The slowest kernels, so that a small model takes long.
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("AQ_")}
        self.env["AQ_ISA"] = "scalar"

    def start(self, output: Path, *flags: str) -> subprocess.Popen[bytes]:
        """Starts a run into a file or folder."""
        argv = [self.program, "quantize", self.model, output, "--quiet", "--threads", "1"]
        argv += ["--bits", "2", "--scheme", "affine", *flags]
        return subprocess.Popen(argv, env=self.env)

    def run(self, output: Path, *flags: str) -> float:
        """Does a complete run, and returns its seconds."""
        start = time.monotonic()
        code = self.start(output, *flags).wait()
        if code:
            raise AssertionError(f"{output.name}: exit code {code}")
        return time.monotonic() - start


def partials(folder: Path) -> list[str]:
    """Returns the temporary files that runs left."""
    return sorted(path.name for path in folder.rglob("*.partial"))


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(holds: bool, what: str) -> None:
    """Stops everything if a check fails."""
    if not holds:
        raise AssertionError(what)


class Kills:
    """Kills, and their results."""

    def __init__(self, runs: Runs, chance: random.Random, part_bytes: int) -> None:
        self.runs = runs
        self.chance = chance
        self.part_size = ("--part-size", str(part_bytes))
        self.landed = {"file": 0, "folder": 0}
        self.file = runs.folder / "out" / "model.parquet"
        self.many = runs.folder / "many"
        self.file.parent.mkdir()
        self.seconds = {
            "file": runs.run(self.file),
            "folder": runs.run(self.many, *self.part_size),
        }
        self.new = self.file.read_bytes()
        self.whole = contents(self.many)

    def kill(self, what: str, output: Path, *flags: str) -> bool:
        """Starts a run and kills it at a random moment; false if it had already ended."""
        run = self.runs.start(output, *flags)
        time.sleep(self.chance.uniform(0, self.seconds[what]))
        run.send_signal(signal.SIGKILL)
        return run.wait() == -signal.SIGKILL

    def of_file(self) -> None:
        """Checks a file: it is the old one, the new one or missing."""
        old = self.chance.choice([None, b"an older file"])
        self.file.unlink(missing_ok=True)
        if old is not None:
            self.file.write_bytes(old)
        self.landed["file"] += self.kill("file", self.file)
        found = self.file.read_bytes() if self.file.exists() else None
        check(found in (old, self.new), "the file is neither old nor new")

    def of_folder(self) -> None:
        """Checks a folder of parts: each is complete, and a run resumes with them."""
        shutil.rmtree(self.many, ignore_errors=True)
        self.landed["folder"] += self.kill("folder", self.many, *self.part_size)
        there = contents(self.many) if self.many.exists() else {}
        parts = {name for name in there if name.startswith("part-")}
        for name in parts:
            check(there[name] == self.whole[name], f"{name} is not whole")
        # Killed once more while it clears away what was there, and begins anew.
        if self.chance.random() < 0.3:
            self.kill("folder", self.many, *self.part_size, "--restart")
            parts = {path.name for path in self.many.glob("part-*")}
        report = self.runs.folder / "report.json"
        # By default it goes on.
        flags = self.chance.choice([(), ("--resume",)])
        self.runs.run(self.many, *self.part_size, *flags, "--report", str(report))
        counts = json.loads(report.read_text())["parts"]
        check(counts["count"] == PARTS, f"{counts['count']} parts")
        # A part that was there is not made again, so that only what was under way is.
        check(counts["resumed"] == len(parts), f"{counts} with {len(parts)} there")
        check(contents(self.many) == self.whole, "continued, the folder is another one")

    def leftovers(self) -> None:
        """Checks that temporary files are gone after the next run."""
        self.runs.run(self.file)
        check(not partials(self.runs.folder), f"left over: {partials(self.runs.folder)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a run takes at the least")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        runs = Runs(args.program, Path(temporary))
        weights = 1 << 20
        while True:
            write_model(runs.model, weights)
            probe = runs.folder / "probe.parquet"
            seconds = runs.run(probe)
            probe.unlink()
            if seconds >= args.seconds:
                break
            weights = int(weights * max(1.3, 1.3 * args.seconds / seconds))
        # A row takes 2 bits a weight, and 4 bytes for each group of 128.
        rows = max(weights // (PARTS * COLUMNS), 1)
        kills = Kills(runs, random.Random(args.seed), rows * (COLUMNS // 4 + COLUMNS // 32))
        for i in range(args.kills):
            (kills.of_file if i % 2 else kills.of_folder)()
            print(f"\r{i + 1} of {args.kills}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        kills.leftovers()
        result = {
            "kills": args.kills,
            "landed": sum(kills.landed.values()),
            "landed_in": kills.landed,
            "seconds_of_a_run": {what: round(s, 2) for what, s in kills.seconds.items()},
            "seed": args.seed,
        }
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AssertionError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        sys.exit(1)

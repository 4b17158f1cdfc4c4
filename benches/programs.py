"""Builds what is measured, and says how it is called."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Argv, Case, Progress, environment, run

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benches/baseline.py"

# What ours is compared with, by name in results: engines of the baseline.
YARDSTICKS = {"numpy": "numpy", "numpy tuned": "tuned", "torch": "torch"}

MINMAX = {"method": "minmax", "gain": "lsq"}
SETTINGS = {"minmax": MINMAX, "default": {}}

# Python keeps what it compiled, as it usually does: no time is for compiling it anew.
CACHED = {"PYTHONDONTWRITEBYTECODE": ""}


def target_folder() -> Path:
    """Where cargo builds."""
    argv = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    return Path(json.loads(run(argv, cwd=ROOT))["target_directory"])


def compiler(variable: str, *names: str) -> str | None:
    """What the environment names, or the first that is installed."""
    return os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)


@dataclass(frozen=True)
class Programs:
    """The programs that were built."""

    cli: Path
    library: Path
    #: Callers of examples/ by the name of their language, as they begin a command line.
    callers: dict[str, Argv]

    @classmethod
    def build(cls, target: Path, folder: Path, say: Progress) -> Programs:
        """Builds the library with cargo, and the callers of examples/ into `folder`."""
        say("cargo build --release")
        run(["cargo", "build", "--release", "--quiet"], cwd=ROOT)
        built = target / "release"
        callers: dict[str, Argv] = {}
        for language, source, standard, found in (
            ("C", "quantize.c", "c11", compiler("CC", "cc", "gcc", "clang")),
            ("C++", "quantize.cpp", "c++17", compiler("CXX", "c++", "g++", "clang++")),
        ):
            if found is None:
                say(f"no {language} compiler: its caller is left out")
                continue
            say(f"examples/{source}")
            program = folder / f"caller-{language}"
            run(
                [*found.split(), f"-std={standard}", "-O2", "-I", ROOT / "include",
                 ROOT / "examples" / source, built / "libarrowquant.a", "-o", program,
                 "-lpthread", "-ldl", "-lm"]
            )
            callers[language] = [program]
        callers["Python ctypes"] = [sys.executable, ROOT / "examples/quantize.py"]
        cli = built / "arrowquant"
        suffix = "dylib" if sys.platform == "darwin" else "so"
        return cls(cli, built / f"libarrowquant.{suffix}", callers)

    def python(self) -> dict[str, str]:
        """The environment of Python programs that import our package."""
        return {
            "ARROWQUANT_LIBRARY": str(self.library),
            "PYTHONPATH": str(ROOT / "bindings/python"),
            **CACHED,
        }

    def command_line(
        self, model: Path, bits: int, method: str, what: dict[str, Any], *flags: str, **env: str
    ) -> Case:
        """The program arrowquant, told more by flags and environment."""
        output = model.with_name("native.parquet")
        argv: Argv = [self.cli, "quantize", model, output, "--quiet", "--bits", str(bits), *flags]
        settings = [part for key, value in SETTINGS[method].items() for part in (f"--{key}", value)]
        return Case(what, [*argv, *settings], output, env)

    def native(self, size: str, model: Path, bits: int) -> list[Case]:
        """Every caller with minmax, and the program with the default method."""

        def what(program: str, method: str) -> dict[str, Any]:
            return {"size": size, "bits": bits, "program": program, "method": method}

        cases = [
            self.command_line(model, bits, method, what("command line", method))
            for method in ("minmax", "default")
        ]
        output = model.with_name("caller.parquet")
        settings = [f"{key}={value}" for key, value in {"bit_width": bits, **MINMAX}.items()]
        for name, caller in self.callers.items():
            env = self.python() if name == "Python ctypes" else {}
            cases.append(Case(what(name, "minmax"), [*caller, model, output, *settings], output, env))
        return cases

    def yardstick(self, size: str, model: Path, bits: int, program: str) -> Case:
        """The same job by numpy or torch."""
        what = {"size": size, "bits": bits, "program": program, "method": "minmax"}
        output = model.with_name("baseline.raw")
        argv: Argv = [
            sys.executable, BASELINE, model, output, "--bits", str(bits), "--engine", YARDSTICKS[program]
        ]
        return Case(what, argv, output, CACHED, once=size == "7B", yardstick=True)

    def check_yardsticks(self) -> None:
        """That they do the job that ours does."""
        engines = [YARDSTICKS[name] for name in yardsticks()]
        run([sys.executable, BASELINE, "--check", *engines], environment(**self.python()))

    def isa(self) -> str:
        """The instruction set whose kernels are used."""
        program = "import arrowquant; print(arrowquant.isa_name())"
        return run([sys.executable, "-c", program], environment(**self.python())).strip()

    def version(self) -> str:
        """As the program says it."""
        return run([self.cli, "--version"]).split()[-1]


def yardsticks() -> list[str]:
    """Those that are installed."""
    torch = importlib.util.find_spec("torch") is not None
    return [name for name in YARDSTICKS if name != "torch" or torch]

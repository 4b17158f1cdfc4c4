"""What figures depend on: the machine, and what was measured on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from measure import Failed, run
from programs import ROOT
from sections import cores


def first(path: str, key: str) -> str | None:
    """The first value of a key in a file of /proc."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
    return next(found, None)


def machine(isa: str) -> dict[str, Any]:
    """What figures depend on."""
    return {
        "cpu": first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "isa": isa,
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "rustc": run(["rustc", "--version"], cwd=ROOT).strip(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def commit() -> str:
    """What is measured; with a + for changes that are in no commit."""
    try:
        short = run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT).strip()
        return short + ("+" if run(["git", "status", "--porcelain"], cwd=ROOT) else "")
    except (Failed, OSError):
        return "unknown"

"""Fixtures. The package is installed (bindings/python/README.md); ARROWQUANT_CLI is the path of the
command line, by default that of a release build in this repository."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import arrowquant
from common import noise, to_bf16, write_safetensors

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("ARROWQUANT_CLI", str(ROOT / "target" / "release" / "arrowquant"))

# Settings of whoever runs the tests must not change them.
for name in [name for name in os.environ if name.startswith("AQ_") and name != "AQ_ISA"]:
    del os.environ[name]


# Under nohup Ctrl-C is ignored, also by Python; the tests send it to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def models(root):
    return root / "examples" / "models"


@pytest.fixture(scope="session")
def dit(models):
    return models / "dit-digits.safetensors"


@pytest.fixture(scope="session")
def cli():
    """Runs the command line; returns the finished process."""
    assert os.path.exists(PROGRAM), f"ARROWQUANT_CLI names no program: {PROGRAM}"
    return lambda *args, **options: _run([PROGRAM, *args], **options)


@pytest.fixture(scope="session")
def module():
    """Runs `python -m arrowquant`."""
    return lambda *args, **options: _run([sys.executable, "-m", "arrowquant", *args], **options)


@pytest.fixture(scope="session")
def python():
    """Runs a Python program given as text."""
    return lambda text, *args, **options: _run([sys.executable, "-c", text, *args], **options)


def _run(command, check=True, **options):
    done = subprocess.run(
        [os.fspath(part) for part in map(_text, command)],
        capture_output=True, encoding="utf-8", timeout=60, **options,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def _text(part):
    return part if isinstance(part, os.PathLike) else str(part)


@pytest.fixture(scope="session")
def tensors():
    """A small model with every kind of tensor, by safetensors dtype."""
    return {
        "blocks.0.attn.qkv.weight": ("F32", noise(1, 48, 200)),
        "blocks.0.mlp.weight": ("BF16", to_bf16(noise(2, 40, 64))),
        "blocks.0.conv.weight": ("F16", noise(3, 8, 4, 3, 3).astype("<f2")),
        "blocks.0.norm.weight": ("F32", noise(4, 64)),
        "position_ids": ("I64", np.arange(12, dtype="<i8").reshape(1, 12)),
        "empty.weight": ("F32", np.zeros((0, 16), "<f4")),
        "temperature": ("F32", np.array(0.5, "<f4")),
    }


@pytest.fixture(scope="session")
def small(tmp_path_factory, tensors):
    """The safetensors file of the small model."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    return write_safetensors(path, tensors, metadata={"architecture": "test"})


@pytest.fixture(scope="session")
def packed(tmp_path_factory, small):
    """The small model, quantized."""
    path = tmp_path_factory.mktemp("packed") / "small.parquet"
    arrowquant.quantize(small, path, bits=4, group_size=64)
    return path


@pytest.fixture(scope="session")
def big_packed(tmp_path_factory, dit):
    """The demonstration model with affine codes, quantized."""
    path = tmp_path_factory.mktemp("big") / "dit.parquet"
    arrowquant.quantize(dit, path, bits=4, scheme="affine")
    return path

"""Compares other quantizers on the same matrices, on one core and in memory: see benches/README.md.

    python benches/peers.py
"""

from __future__ import annotations

import os

# One core each.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import ctypes
import datetime
import importlib.metadata
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accuracy import MODELS, load_library
from accuracy_report import with_section
from baseline import GROUP, ZERO_POINT, by_numpy
from machine import commit, machine
from measure import Failed, Progress
from networks import Array, read_safetensors
from programs import ROOT, target_folder
from report import Table
from report import machine as machine_lines

# Of the matrix that is timed: Student's t, 5 degrees of freedom, as in the other benchmarks.
SIDE, SIDE_QUICK = 4096, 1024
ROUNDS, ROUNDS_QUICK = 5, 1

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


@dataclass(frozen=True)
class Peer:
    """One quantizer of f32 matrices: its decoder, and the bytes it takes."""

    name: str
    bits: int
    quantize: Callable[[Array], Any]
    decode: Callable[[Any], Array]
    size: Callable[[Any], int]


def ours() -> list[Peer]:
    import arrowquant

    def peer(bits: int, method: str, group: int) -> Peer:
        # Their way to round to a range has no unit gain.
        gain = "lsq" if method == "minmax" else "auto"
        return Peer(
            f"arrowquant {method}" + (f", groups of {group}" if group != GROUP else ""),
            bits,
            lambda w: arrowquant.kernels.quantize_rows(w, bits=bits, method=method, gain=gain, group_size=group),
            arrowquant.kernels.dequantize_rows,
            lambda q: len(q.codes) + len(q.scales),
        )

    kinds = (("minmax", GROUP), ("lsq", GROUP), ("lsq", 32))
    return [peer(bits, *kind) for bits in (2, 4, 8) for kind in kinds]


def numpy_peers() -> list[Peer]:
    """The formulas of docs/format.md as array expressions, which take bf16."""

    def quantize(w: Array, bits: int) -> tuple[Array, Array, int]:
        bf16 = (w.view("<u4") >> 16).astype("<u2")
        return *by_numpy(bf16, bits), w.shape[1]

    def decode(found: tuple[Array, Array, int], bits: int) -> Array:
        codes, scales, cols = found
        parts = [codes >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
        q = np.stack(parts, axis=-1).reshape(-1, GROUP).astype("f4")
        w = (q - np.float32(ZERO_POINT[bits])) * scales.astype("f4")[:, None]
        return w.reshape(-1, cols)

    return [
        Peer(
            "numpy minmax",
            bits,
            lambda w, bits=bits: quantize(w, bits),
            lambda q, bits=bits: decode(q, bits),
            lambda q: q[0].nbytes + q[1].nbytes,
        )
        for bits in (2, 4, 8)
    ]


def ggml_peers() -> list[Peer]:
    """llama.cpp's quantizer, as the package llama-cpp-python builds it; decoded by the package gguf."""
    import gguf

    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise ImportError("llama_cpp")
    folder = Path(package.origin).parent / "lib"
    lib = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    lib.ggml_row_size.restype = lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p
    ]

    def quantize(w: Array, kind: Any) -> tuple[Array, Any]:
        rows, cols = w.shape
        out = np.empty((rows, lib.ggml_row_size(kind, cols)), "u1")
        lib.ggml_quantize_chunk(kind, w.ctypes.data, out.ctypes.data, 0, rows, cols, None)
        return out, kind

    kinds = {"Q2_K": 2, "Q4_0": 4, "Q4_K": 4, "Q8_0": 8}
    return [
        Peer(
            f"llama.cpp {name}",
            bits,
            lambda w, kind=gguf.GGMLQuantizationType[name]: quantize(w, kind),
            lambda q: gguf.quants.dequantize(*q),
            lambda q: q[0].nbytes,
        )
        for name, bits in kinds.items()
    ]


def torchao_peers() -> list[Peer]:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    torch.set_num_threads(1)

    def quantize(w: Array, dtype: Any) -> Any:
        layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(torch.from_numpy(w), requires_grad=False)
        quantize_(layer, IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(GROUP)))
        return layer.weight

    def size(weight: Any) -> int:
        """Its tensors; codes of 4 bits take a byte each in memory, and are counted so."""
        parts = (getattr(weight, name, None) for name in ("qdata", "scale", "zero_point"))
        return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))

    return [
        Peer(
            f"torchao int{bits} weight only",
            bits,
            lambda w, dtype=dtype: quantize(w, dtype),
            lambda q: q.dequantize().float().numpy(),
            size,
        )
        for bits, dtype in ((4, torch.int4), (8, torch.int8))
    ]


def real_weights() -> list[Array]:
    """The matrices of the blocks of both trained models whose rows are whole blocks of all formats."""
    found = []
    for file in ("dit-digits.safetensors", "mdlm-python.safetensors"):
        tensors = read_safetensors(MODELS / file)[0]
        found += [
            np.ascontiguousarray(w, "f4")
            for name, w in tensors.items()
            if "blocks." in name or "layers." in name
            if w.ndim == 2 and w.shape[1] % 256 == 0
        ]
    return found


def cosine(peer: Peer, matrices: list[Array]) -> float:
    """Returns the cosine over all weights."""
    dot = norm = other = 0.0
    for w in matrices:
        q = peer.decode(peer.quantize(w)).astype("f8").reshape(w.shape)
        dot, norm, other = dot + (w * q).sum(), norm + (w.astype("f8") ** 2).sum(), other + (q * q).sum()
    return float(dot / np.sqrt(norm * other))


def measure(args: argparse.Namespace, say: Progress) -> dict[str, Any]:
    load_library(say)
    import arrowquant

    missing, peers = [], ours() + numpy_peers()
    for what, make in (("llama-cpp-python and gguf", ggml_peers), ("torch and torchao", torchao_peers)):
        try:
            peers += make()
        except ImportError as error:
            missing.append(f"{what} ({error})")
    side, rounds = (SIDE_QUICK, ROUNDS_QUICK) if args.quick else (SIDE, ROUNDS)
    weights = (np.random.default_rng(1).standard_t(5, (side, side)) * 0.02).astype("f4")
    matrices = real_weights()
    best: dict[tuple[str, int], float] = {}
    for turn in range(rounds + 1):
        say(f"turn {turn} of {rounds}" if turn else "warming up")
        for peer in peers:
            start = time.perf_counter()
            peer.quantize(weights)
            taken = time.perf_counter() - start
            if turn:
                key = peer.name, peer.bits
                best[key] = min(best.get(key, np.inf), taken)
    rows = []
    for peer in sorted(peers, key=lambda peer: peer.bits):
        rows.append(
            {
                "what": peer.name,
                "bits": peer.bits,
                "bits_per_weight": 8 * peer.size(peer.quantize(weights)) / weights.size,
                "cosine": cosine(peer, matrices),
                "seconds": best[peer.name, peer.bits],
            }
        )
    packages = ("numpy", "llama-cpp-python", "gguf", "torch", "torchao")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": machine(arrowquant.isa_name()),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benches/peers.py", *sys.argv[1:]]),
        "version": arrowquant.__version__,
        "commit": commit(),
        "versions": versions,
        "missing": missing,
        "side": side,
        "weights": weights.size,
        "matrices": len(matrices),
        "rows": rows,
    }


def table(results: dict[str, Any]) -> Table:
    by_numpy = {row["bits"]: row["seconds"] for row in results["rows"] if row["what"] == "numpy minmax"}
    body = [
        [
            f"int{row['bits']}",
            row["what"],
            f"{row['bits_per_weight']:.3f}",
            f"{row['cosine']:.5f}",
            f"{results['weights'] / row['seconds'] / 1e6:.1f}",
            f"{by_numpy[row['bits']] / row['seconds']:.2f}x",
        ]
        for row in results["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    note = (
        f"From f32 to codes and scales in memory, on one core, for a matrix of {results['side']} x {results['side']}; the "
        "best of several rounds in turns. Groups have 128 weights unless stated otherwise, in llama.cpp's formats "
        f"16 or 32. Bits are those in memory. The cosine is over the decoded weights of {results['matrices']} matrices of "
        f"the two trained models. {versions}."
    )
    if results["missing"]:
        note += f" Not installed, so not measured: {'; '.join(results['missing'])}."
    heads = ["", "by", "bits/weight", "cosine", "M weights/s", "of numpy's speed"]
    return Table("", "One core, in memory", heads, body, note)


def write_docs(results: dict[str, Any]) -> None:
    page = ROOT / "docs/benchmarks.md"
    parts = [
        BEGIN,
        "## Peers",
        f"`{results['command']}` wrote this section, with arrowquant {results['version']} at "
        f"{results['commit']}, {results['date']}.",
        table(results).markdown(),
        END,
    ]
    page.write_text(with_section(page.read_text(), "\n\n".join(parts)))
    readme = ROOT / "README.md"
    rows = [line for line in table(results).markdown().splitlines() if line.startswith("|")]
    readme.write_text(with_section(readme.read_text(), "\n".join([BEGIN, *rows, END])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small matrix once; no docs")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="[default: target/peers]")
    args = parser.parse_args()
    output = args.output or target_folder() / "peers"
    output.mkdir(parents=True, exist_ok=True)
    try:
        results = measure(args, Progress())
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    (output / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n".join([results["command"], *machine_lines(results), "", table(results).text(), ""])
    (output / "peers.txt").write_text(text)
    print(text)
    if not args.quick:
        write_docs(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What native is compared with: minmax in numpy, and in torch where that is installed.

    python benches/baseline.py IN.safetensors OUT.raw --bits 4 --engine numpy

The same job as `arrowquant quantize --method minmax --gain lsq`, except that it measures no cosine
and computes no checksum: reads bf16 tensors, chooses f16 scales for groups of 128, packs the codes as
docs/format.md says, and writes codes and scales to one file, which is on the disk when it ends.

Engines: `numpy` is the formulas of docs/format.md as array expressions over whole tensors, as one
would write them; `tuned` is numpy, too, but works in place on what fits a cache, and packs without
strides; `torch` shares the tuned steps among all cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

GROUP = 128
ZERO_POINT = {2: 1.5, 4: 8.0, 8: 128.0}

# Groups whose arrays fit a core's L2 cache.
BLOCK = 1024

# Packed codes and f16 scales of bf16 weights; rows are whole groups.
Quantize = Callable[[np.ndarray, int], tuple[Any, Any]]


def f16_scales(x: np.ndarray, bits: int) -> np.ndarray:
    """Of rows that are groups: the weight of largest magnitude gets the extreme code."""
    z = np.float32(ZERO_POINT[bits])
    low, high = x.min(axis=1), x.max(axis=1)
    extreme = np.where(high >= -low, high, low)
    scales = (np.abs(extreme) / z if bits == 2 else -extreme / z).astype("<f2")
    if not np.isfinite(scales).all():
        raise ValueError("weights that are not finite, or too large for f16")
    return scales


def reciprocal(scales: np.ndarray) -> np.ndarray:
    """In f32, 0 of 0, as a column."""
    scale = scales.astype("<f4")
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)[:, None]


def by_numpy(bf16: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Array expressions over the whole tensor."""
    z = np.float32(ZERO_POINT[bits])
    x = (bf16.astype("<u4") << 16).view("<f4").reshape(-1, GROUP)
    scales = f16_scales(x, bits)
    codes = np.rint(np.clip(x * reciprocal(scales) + z, 0, 2**bits - 1)).astype("u1")
    if bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    elif bits == 2:
        codes = codes[:, 0::4] | codes[:, 1::4] << 2 | codes[:, 2::4] << 4 | codes[:, 3::4] << 6
    return codes, scales


def by_tuned_numpy(bf16: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Block by block and in place, as what takes numpy longest is going through memory."""
    z = np.float32(ZERO_POINT[bits])
    groups = bf16.reshape(-1, GROUP)
    codes = np.empty((len(groups), GROUP * bits // 8), "u1")
    scales = np.empty(len(groups), "<f2")
    for start in range(0, len(groups), BLOCK):
        block = slice(start, start + BLOCK)
        wide = np.zeros(groups[block].shape, "<u4")
        wide.view("<u2")[:, 1::2] = groups[block]
        x = wide.view("<f4")
        scales[block] = f16_scales(x, bits)
        x *= reciprocal(scales[block])
        x += z
        np.clip(x, 0, 2**bits - 1, out=x)
        np.rint(x, out=x)
        whole = x.astype("u1")
        # Neighbours move together inside one integer: no strides.
        if bits == 8:
            codes[block] = whole
        elif bits == 4:
            pairs = whole.view("<u2")
            codes[block] = pairs | pairs >> 4
        else:
            fours = whole.view("<u4")
            codes[block] = fours | fours >> 6 | fours >> 12 | fours >> 18
    return codes, scales


def by_torch(bf16: np.ndarray, bits: int) -> tuple[Any, Any]:
    """Over the whole tensor, in place."""
    import torch

    z = ZERO_POINT[bits]
    x = torch.from_numpy(bf16.view("<i2")).view(torch.bfloat16).float().reshape(-1, GROUP)
    low, high = x.aminmax(dim=1)
    extreme = torch.where(high >= -low, high, low)
    scales = (extreme.abs() / z if bits == 2 else -extreme / z).half()
    if not scales.isfinite().all():
        raise ValueError("weights that are not finite, or too large for f16")
    scale = scales.float()
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    x.mul_(inverse[:, None]).add_(z).clamp_(0, 2**bits - 1).round_()
    codes = x.to(torch.uint8)
    if bits == 4:
        pairs = codes.view(torch.int16)
        codes = (pairs | pairs >> 4).to(torch.uint8)
    elif bits == 2:
        fours = codes.view(torch.int32)
        codes = (fours | fours >> 6 | fours >> 12 | fours >> 18).to(torch.uint8)
    return codes.numpy(), scales.numpy()


ENGINES: dict[str, Quantize] = {"numpy": by_numpy, "tuned": by_tuned_numpy, "torch": by_torch}


def tensors(file: BinaryIO) -> Iterator[np.ndarray]:
    """The bf16 tensors of a safetensors file as 16 bit numbers, one at a time."""
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        assert entry["dtype"] == "BF16", entry
        shape = entry["shape"]
        yield np.fromfile(file, "<u2", math.prod(shape)).reshape(shape)


def quantize_file(source: Path, output: Path, bits: int, quantize: Quantize) -> None:
    """Tensors of one dimension are kept as they are."""
    with source.open("rb") as file, output.open("wb") as out:
        for tensor in tensors(file):
            planes = (tensor,) if tensor.ndim == 1 else quantize(tensor, bits)
            for plane in planes:
                plane.tofile(out)
        out.flush()
        os.fsync(out.fileno())


def check(engines: list[str]) -> None:
    """That the engines make the codes and scales that the library makes."""
    import arrowquant

    weights = np.random.default_rng(1).standard_t(5, (64, 2048)).astype("<f4")
    weights[0, :GROUP] = 0
    bf16 = (weights.view("<u4") >> 16).astype("<u2")
    for bits in ZERO_POINT:
        native = arrowquant.kernels.quantize_rows(bf16, dtype="bf16", bits=bits, method="minmax", gain="lsq")
        for engine in engines:
            codes, scales = ENGINES[engine](bf16, bits)
            if codes.tobytes() != native.codes or scales.tobytes() != native.scales:
                raise SystemExit(f"{engine} and the library differ for int{bits}")


def weights_per_second(bits: int, quantize: Quantize, quick: bool) -> float:
    """In memory, with nothing read or written: the best of three."""
    rows = 256 if quick else 4096
    weights = np.random.default_rng(2).standard_t(5, (rows, 4096)).astype("<f4")
    bf16 = (weights.view("<u4") >> 16).astype("<u2")
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        quantize(bf16, bits)
        best = min(best, time.perf_counter() - start)
    return bf16.size / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--bits", type=int, choices=ZERO_POINT, default=4)
    parser.add_argument("--engine", choices=ENGINES, default="numpy")
    parser.add_argument("--check", nargs="+", choices=ENGINES, help="compare with the library instead")
    parser.add_argument("--time", action="store_true", help="in memory: print weights a second")
    parser.add_argument("--quick", action="store_true", help="with --time: fewer weights")
    args = parser.parse_args()
    if args.time:
        print(weights_per_second(args.bits, ENGINES[args.engine], args.quick))
    elif args.check:
        check(args.check)
    elif args.output is None:
        parser.error("IN.safetensors and OUT.raw are needed")
    else:
        quantize_file(args.source, args.output, args.bits, ENGINES[args.engine])


if __name__ == "__main__":
    main()

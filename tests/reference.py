"""Quantizes small models in every way there is and prints a hash of each output.

    python tests/reference.py PROGRAM [--calibration FILE] [--only TEXT]

PROGRAM is the `arrowquant` program; a command before it, such as an emulator, may be given with
--runner. Equal lines mean equal bytes: tests/reference.rs compares them with tests/data/reference.txt
on every instruction set of the machine, so a change that must not alter a file shows that it did not.
FILE is a calibration of the demonstration model; with it come cases that depend on the processor, as
Hessians are factored in its own order of sums. They are for comparing two builds on one machine.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

DEMO = pathlib.Path(__file__).parent.parent / "examples/models/dit-digits.safetensors"


def noise(seed, count):
    """Heavy-tailed numbers of a small generator, so that no library is needed."""
    state = seed * 2654435761 + 1
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        uniform = (state >> 11) / 2**53 - 0.5
        yield 0.08 * uniform / math.sqrt(1.0001 - 4 * uniform * uniform)


def packed(dtype, values):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    letter = {"F32": "f", "F16": "e", "F64": "d"}[dtype]
    return struct.pack(f"<{len(values)}{letter}", *values)


def safetensors(path, tensors):
    """Writes a file of (name, dtype, shape, values)."""
    header, data = {}, b""
    for name, dtype, shape, values in tensors:
        piece = packed(dtype, values)
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(piece)],
        }
        data += piece
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def shapes(path):
    """A model of odd shapes, of every float type, with values large, small and equal."""
    tensors = []
    for i, (dtype, shape) in enumerate(
        [
            ("BF16", [96, 320]),
            ("BF16", [33, 1025]),
            ("F32", [40, 257]),
            ("F16", [64, 144]),
            ("F64", [17, 96]),
            ("F32", [24, 8, 3, 3]),
            ("BF16", [1, 2048]),
            ("BF16", [300, 16]),
            ("F32", [5, 0]),
            ("F32", [77]),
        ]
    ):
        tensors.append(
            (f"blocks.{i}.weight", dtype, shape, list(noise(i, math.prod(shape))))
        )
    values = list(noise(50, 32 * 256))
    tensors.append(("large.weight", "F32", [32, 256], [v * 1e9 for v in values]))
    tensors.append(("tiny.weight", "F32", [32, 256], [v * 1e-30 for v in values]))
    tensors.append(("zero.weight", "BF16", [32, 256], [0.0] * (32 * 256)))
    tensors.append(("equal.weight", "BF16", [32, 256], [0.5] * (32 * 256)))
    tensors.append(("positive.weight", "F32", [32, 256], [abs(v) + 1 for v in values]))
    safetensors(path, tensors)


def importance(path, names):
    """An importance matrix in llama.cpp's first format: (name, columns) of each layer."""
    out = struct.pack("<i", len(names))
    for i, (name, cols) in enumerate(names):
        name = name.encode()
        squares = [abs(x) + 1e-4 for x in noise(900 + i, cols)]
        out += struct.pack("<i", len(name)) + name
        out += struct.pack("<ii", 7, cols) + struct.pack(f"<{cols}f", *squares)
    path.write_bytes(out)


def cases(folder, calibration):
    """Names, inputs and arguments."""
    small, demo = folder / "shapes.safetensors", DEMO
    for bits in ("2", "4", "8"):
        for scheme in ("symmetric", "affine"):
            for method in ("minmax", "lsq"):
                for group in ("16", "48", "128", "0"):
                    name = f"shapes int{bits} {scheme} {method} {group}"
                    flags = f"--bits {bits} --scheme {scheme} --method {method} --group-size {group}"
                    yield name, small, f"{flags} --min-cosine none"
        yield f"demo int{bits}", demo, f"--bits {bits}"
        yield f"demo int{bits} zstd", demo, f"--bits {bits} --compression zstd"
        for gain in ("unit", "lsq"):
            yield f"shapes int{bits} gain {gain}", small, (
                f"--bits {bits} --gain {gain} --min-cosine none"
            )
    for dtype in ("f32", "auto"):
        yield f"shapes scales {dtype}", small, f"--scale-dtype {dtype} --min-cosine none"
    for profile in ("edge", "local", "cloud"):
        yield f"demo {profile}", demo, f"--profile {profile}"
    yield "demo streaming", demo, "--bits 4 --streaming"
    yield "demo ceiling", demo, "--bits 2 --memory-limit 40MB --threads 1"
    yield "demo parts", demo, "--bits 4 --part-size 500KB"
    yield "demo parts zstd", demo, "--bits 2 --part-size 500KB --compression zstd"
    yield "demo ladder", demo, "--bits 2 --min-cosine 0.96"
    yield "demo ladder to kept", demo, "--bits 2 --min-cosine 0.99999"
    yield "demo ladder parts", demo, "--bits 2 --min-cosine 0.96 --part-size 1MB"
    yield "demo ladder in place", demo, (
        "--bits 2 --min-cosine 0.96 --memory-limit 40MB --threads 1"
    )
    yield "demo average", demo, "--avg-bits 3"
    yield "demo size", demo, "--max-size 2MB"
    yield "demo mixed", demo, "--mixed --min-cosine 0.97"
    yield "demo candidates", demo, "--avg-bits 3 --candidates int2:32:affine,int4,int8,keep"
    yield "demo rules", demo, "--bits 4 --rule *.mlp.*=bits:8,group:64 --keep *.attn.*"
    imatrix = folder / "importance.dat"
    for bits in ("2", "4"):
        yield f"shapes importance int{bits}", small, (
            f"--bits {bits} --calibration {imatrix} --min-cosine none --method lsq"
        )
        yield f"shapes importance affine int{bits}", small, (
            f"--bits {bits} --scheme affine --calibration {imatrix} --min-cosine none --method lsq"
        )
    if calibration:
        for bits in ("2", "4", "8"):
            for method in ("gptq", "lsq"):
                yield f"demo calibrated {method} int{bits}", demo, (
                    f"--bits {bits} --method {method} --calibration {calibration}"
                )
        yield "demo calibrated affine", demo, f"--scheme affine --calibration {calibration}"
        yield "demo calibrated 2 affine", demo, (
            f"--bits 2 --scheme affine --group-size 32 --calibration {calibration}"
        )
        for weighting in ("equal", "relative", "auto"):
            yield f"demo calibrated {weighting}", demo, (
                f"--bits 2 --time-weighting {weighting} --calibration {calibration}"
            )
        yield "demo calibrated ceiling", demo, (
            f"--bits 2 --memory-limit 110MB --threads 1 --calibration {calibration}"
        )
        yield "demo calibrated ladder", demo, (
            f"--bits 2 --min-cosine 0.98 --calibration {calibration}"
        )
        yield "demo calibrated average", demo, f"--avg-bits 3 --calibration {calibration}"
        yield "demo calibrated parts", demo, (
            f"--bits 2 --part-size 500KB --calibration {calibration}"
        )


def digest(path):
    """A hash of a file, or of the parts of a folder: a manifest has the time of its source."""
    found = hashlib.sha256()
    for file in sorted(path.glob("part-*")) if path.is_dir() else [path]:
        found.update(file.read_bytes())
    return found.hexdigest()[:32]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--runner", default="", help="what runs the program, such as an emulator")
    parser.add_argument("--calibration", help="one of the demonstration model")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    command = [*options.runner.split(), options.program]
    calibration = options.calibration and os.path.abspath(options.calibration)

    def run(*arguments):
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(arguments)}:\n{done.stderr}")

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shapes(folder / "shapes.safetensors")
        layers = [("blocks.0.weight", 320), ("blocks.1.weight", 1025)]
        layers += [("blocks.3.weight", 144), ("positive.weight", 256)]
        importance(folder / "importance.dat", layers)
        for case, model, flags in cases(folder, calibration):
            if options.only not in case:
                continue
            output = folder / ("parts" if "parts" in case else "out.parquet")
            run("quantize", "--quiet", *flags.split(), str(model), str(output))
            print(f"{digest(output)}  {case}", flush=True)
            back = folder / "back.safetensors"
            if "ladder" in case or "calibrated" in case or " 48" in case:
                run("dequantize", str(output), str(back))
                print(f"{digest(back)}  {case}, decoded", flush=True)
            if output.is_dir():
                for file in output.iterdir():
                    file.unlink()
                output.rmdir()


if __name__ == "__main__":
    main()

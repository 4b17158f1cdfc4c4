"""Reads files of the arrowquant program with pyarrow and DuckDB, decodes them with a decoder
written from docs/format.md (common.py), and quantizes the same weights with numpy.

Usage: check_format.py ARROWQUANT MODEL.safetensors TRANSFORMED.parquet
"""

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import common
import duckdb
import numpy as np
import pyarrow.parquet as pq
from common import BITS, SCALES, minmax, read_safetensors, to_bf16, unpack, write_safetensors

PROGRAM, MODEL, TRANSFORMED = sys.argv[1:4]
SHAPES = [(1, 1), (3, 17), (5, 129), (4, 704), (6, 5, 3, 3), (40,), (2, 0), (0, 3), (33, 256)]


def decode(tile):
    shape = tile["shape"]
    cols = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
    planes = tile["codes"], tile["scales"], tile["biases"]
    layout = tile["format"], tile["group_size"], tile["scheme"], tile["scale_dtype"]
    weights = common.decode(*planes, tile["row_count"], cols, *layout)
    return common.undo(weights, tile["input_scale"], tile["rotation"])


def run(*args):
    subprocess.run([PROGRAM, *map(str, args)], check=True)


def tensors_of_every_shape():
    rng = np.random.default_rng(1)
    tensors, weights = {}, {}
    for shape, dtype in itertools.product(SHAPES, ["F32", "F16", "BF16"]):
        x = (rng.standard_t(5, size=shape) * 0.05).astype("<f4")
        raw = {"F32": x, "F16": x.astype("<f2"), "BF16": to_bf16(x)}[dtype]
        exact = (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw.astype("<f4")
        name = f"{dtype}.{'x'.join(map(str, shape))}.weight"
        tensors[name] = (dtype, raw)
        cols = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        rows = (shape[0] if len(shape) > 1 else 1) if x.size else 0
        weights[name] = exact.reshape(rows, cols)
    return tensors, weights


def check_shapes(folder):
    tensors, weights = tensors_of_every_shape()
    source, packed, back = (folder / n for n in ["m.safetensors", "m.parquet", "b.safetensors"])
    write_safetensors(source, tensors)
    decoded = reproduced = 0
    cases = itertools.product(BITS, ["symmetric", "affine"], [0, 16, 48, 128], ["minmax", "lsq"])
    for fmt, scheme, group, method in cases:
        gain = "lsq" if method == "minmax" else "unit"
        run("quantize", source, packed, "--bits", BITS[fmt], "--scheme", scheme, "--group-size",
            group, "--method", method, "--gain", gain, "--rule", f"*=bits:{BITS[fmt]}", "--min-cosine", "none", "--quiet")
        run("dequantize", packed, back, "--dtype", "f32")
        ours = read_safetensors(back)
        tiles = pq.read_table(packed).to_pylist()
        assert {tile["name"] for tile in tiles} == set(weights) == set(ours)
        for tile in tiles:
            name = tile["name"]
            case = f"{name} {fmt} {scheme} g{group} {method}"
            assert (tile["format"], tile["scheme"], tile["group_size"]) == (fmt, scheme, group), case
            y = decode(tile)
            assert y.tobytes() == ours[name].tobytes(), case
            assert ours[name].shape == tuple(tile["shape"]), case
            decoded += 1
            w = weights[name]
            check_figures(tile, w, y, case)
            if method == "minmax":
                dtype = SCALES[tile["scale_dtype"]]
                codes, scales, biases = minmax(w, fmt, scheme, group, dtype)
                cols = w.shape[1]
                assert (unpack(tile["codes"], BITS[fmt], len(w), cols) == codes).all(), case
                assert tile["scales"] == scales.tobytes(), case
                assert tile["biases"] == (biases.tobytes() if scheme == "affine" else None), case
                reproduced += 1
    print("decoded bit for bit:", decoded)
    print("minmax reproduced:", reproduced)
    assert reproduced == decoded / 2


def check_figures(tile, w, y, case):
    """Computes cosine, SQNR and bits per weight independently, in double precision."""
    w, y = w.astype(np.float64), y.astype(np.float64)
    planes = [tile["codes"], tile["scales"], tile["biases"] or b""]
    if w.size:
        bits = 8 * sum(map(len, planes)) / w.size
        assert abs(tile["bits_per_weight"] - bits) < 1e-5 * bits, case
    error = ((w - y) ** 2).sum()
    if error == 0:
        assert tile["cosine"] == (1 if w.any() else None) and tile["sqnr_db"] is None, case
        return
    cosine = (w * y).sum() / np.sqrt((w * w).sum() * (y * y).sum())
    assert abs(tile["cosine"] - cosine) < 1e-6, (case, tile["cosine"], cosine)
    sqnr = 10 * np.log10((w * w).sum() / error)
    assert abs(tile["sqnr_db"] - sqnr) < 1e-3, (case, tile["sqnr_db"], sqnr)


def check_duckdb(folder):
    packed = folder / "dit.parquet"
    run("quantize", MODEL, packed, "--bits", 2, "--scheme", "affine", "--quiet")
    columns = "name, tile, row_start, row_count, shape, source_dtype, format, scheme, group_size, scale_dtype, codes, scales, biases, checksum, cosine, sqnr_db, bits_per_weight"
    rows = duckdb.sql(f"SELECT {columns} FROM '{packed}'").fetchall()
    table = pq.read_table(packed)
    assert rows == [tuple(row.values()) for row in table.select(columns.split(", ")).to_pylist()]
    query = f"SELECT min(cosine) FROM '{packed}' WHERE format = 'int2'"
    [(worst,)] = duckdb.sql(query).fetchall()
    assert 0.8 < worst < 1
    original = read_safetensors(MODEL)
    kept = {row["name"]: row for row in table.to_pylist() if row["format"] == "raw"}
    assert kept and all(original[name].tobytes() == row["codes"] for name, row in kept.items())
    metadata = {k.decode(): v.decode() for k, v in pq.read_metadata(packed).metadata.items()}
    assert metadata["arrowquant.format_version"] == "2"
    assert metadata["arrowquant.modality"] == "image"
    config = json.loads(metadata["arrowquant.config"])
    assert list(config) == sorted(config) and config["bit_width"] == 2
    assert json.loads(metadata["arrowquant.source"])["name"] == "dit-digits.safetensors"
    assert json.loads(metadata["arrowquant.source_metadata"])["architecture"] == "DiT"
    summary = json.loads(metadata["arrowquant.summary"])
    assert set(summary["tensors"]) == {row[0] for row in rows}
    print("rows equal in DuckDB and pyarrow:", len(rows))


def range_of(t_begin, t_end, scale, zero_point):
    return {"t_begin": t_begin, "t_end": t_end, "scale": scale, "zero_point": zero_point}


# What src/run/transform_tests put into TRANSFORMED: scaled or not, rotation, activation.
GIVEN = {
    "both": (True, (8, 77), [range_of(0, 300, 0.25, 8), range_of(300, 999, 0.5, -1.5)]),
    "plain": (False, None, None),
    "tiles": (False, (64, 0), [range_of(10, 20, 1.5, 0)]),
    "scaled": (True, None, None),
    "seeded": (True, (128, 2**64 - 1), None),
    "kept": (False, None, [range_of(0, 1, 2, 3)]),
}


def check_transformed(folder):
    """Reads scaled and rotated columns with pyarrow and DuckDB, and undoes them with numpy."""
    columns = "name, tile, input_scale, rotation, activation"
    table = pq.read_table(TRANSFORMED)
    tiles = table.to_pylist()
    rows = [tuple(row.values()) for row in table.select(columns.split(", ")).to_pylist()]
    assert duckdb.sql(f"SELECT {columns} FROM '{TRANSFORMED}'").fetchall() == rows
    counted = f"SELECT name, len(activation), rotation.block FROM '{TRANSFORMED}' WHERE tile = 0"
    for name, ranges, block in duckdb.sql(counted).fetchall():
        _, rotation, activation = GIVEN[name]
        assert (ranges, block) == (activation and len(activation), rotation and rotation[0]), name
    back = folder / "transformed.safetensors"
    run("verify", TRANSFORMED)
    run("dequantize", TRANSFORMED, back, "--dtype", "f32")
    ours = read_safetensors(back)
    undone = {name: [] for name in GIVEN if name != "kept"}
    for tile in tiles:
        scaled, rotation, activation = GIVEN[tile["name"]]
        rotation = rotation and dict(zip(("block", "seed"), rotation))
        assert (tile["rotation"], tile["activation"]) == (rotation, activation), tile["name"]
        assert (tile["input_scale"] is not None) == scaled, tile["name"]
        if scaled:
            cols = tile["shape"][1]
            scale = (0.5 + 0.25 * (np.arange(cols) % 5)).astype("<f2")
            assert tile["input_scale"] == scale.tobytes()
        if tile["format"] != "raw":
            undone[tile["name"]].append(decode(tile))
    for name, parts in undone.items():
        y = np.concatenate(parts)
        assert y.tobytes() == ours[name].tobytes(), name
        # The weights that were given.
        i = np.arange(y.size)
        w = ((i * 7919 + len(name) * 101) % 1009).astype("<f4") / np.float32(504) - np.float32(1)
        assert common.cosine(w, y) > (0.8 if name == "tiles" else 0.99), name
    assert ours["kept"].tolist() == [1, -2, 0.5]
    print("transformed tensors undone bit for bit:", len(undone))


with tempfile.TemporaryDirectory() as name:
    check_transformed(pathlib.Path(name))
    check_shapes(pathlib.Path(name))
    check_duckdb(pathlib.Path(name))

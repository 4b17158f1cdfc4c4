"""Shared helpers: files to quantize, and readers that know the format from docs/format.md
alone."""

import json
import pathlib
import struct

import numpy as np

BITS = {"int2": 2, "int4": 4, "int8": 8}
ZERO_POINT = {"int2": 1.5, "int4": 8.0, "int8": 128.0}
SCALES = {"f16": "<f2", "f32": "<f4"}
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U8": "u1", "BOOL": "?"}
# Those that numpy lacks, as their bits.
BITS_ONLY = ["BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]
NUMPY |= {name: "u1" for name in BITS_ONLY[1:]}


def noise(seed, *shape):
    """f32 with tails, like weights."""
    return (np.random.default_rng(seed).standard_t(5, size=shape) * 0.05).astype("<f4")


def to_bf16(x):
    """The upper halves: the bits of bf16, rounded down."""
    return (np.ascontiguousarray(x, "<f4").view("<u4") >> 16).astype("<u2")


def from_bf16(x):
    return (np.asarray(x).astype("<u4") << 16).view("<f4")


def round_to_bf16(x):
    """The bits of the nearest bf16, half to even."""
    bits = np.ascontiguousarray(x, "<f4").view("<u4").astype("<u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path, tensors, metadata=None):
    """`tensors` are names with arrays, or with pairs of safetensors dtype and array."""
    names = {np.dtype(numpy): name for name, numpy in NUMPY.items() if name not in BITS_ONLY}
    header, body = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, data in tensors.items():
        dtype, array = data if isinstance(data, tuple) else (names[data.dtype], data)
        offsets = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        body += array.tobytes()
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def read_safetensors(path):
    """Arrays by name, bf16 as its bits."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], NUMPY[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def unpack(codes, bits, rows, cols):
    per_row = -(-cols * bits // 8)
    data = np.frombuffer(codes, np.uint8).reshape(rows, per_row)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (data[:, :, None] >> shifts) & ((1 << bits) - 1)
    return codes.reshape(rows, per_row * (8 // bits))[:, :cols]


def decode(codes, scales, biases, rows, cols, format, group_size, scheme, scale_dtype):
    """f32 [rows, cols], of planes of bytes."""
    q = unpack(codes, BITS[format], rows, cols).astype(np.float32)
    group = group_size or max(cols, 1)
    groups = -(-cols // group)

    def spread(plane):
        plane = np.frombuffer(plane, SCALES[scale_dtype]).astype(np.float32)
        return np.repeat(plane.reshape(rows, groups), group, axis=1)[:, :cols]

    if scheme == "symmetric":
        return spread(scales) * (q - np.float32(ZERO_POINT[format]))
    return spread(scales) * q + spread(biases)


def butterflies(v):
    """[..., n] times the Hadamard matrix of order n, in the order of docs/format.md."""
    n, distance = v.shape[-1], 1
    while distance < n:
        pairs = v.reshape(*v.shape[:-1], n // (2 * distance), 2, distance)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        v = np.stack([a + b, a - b], axis=-2).reshape(v.shape)
        distance *= 2
    return v


def signs(seed, cols):
    """1 and -1 for each column, by SplitMix64."""
    if seed == 0:
        return np.ones(cols, np.float32)
    k = np.arange(-(-cols // 64), dtype=np.uint64) + np.uint64(1)
    z = np.uint64(seed) + k * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    bits = (z[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return np.where(bits.ravel()[:cols] == 1, np.float32(-1), np.float32(1))


def rotate(x, block, seed, back=False):
    """f32 [rows, cols] times R, or times its transpose, block by block."""
    flips = signs(seed, x.shape[1])
    norm = np.float32(1 / np.sqrt(block))
    x = (x if back else x * flips).reshape(len(x), -1, block)
    x = butterflies(x).reshape(len(x), -1) * norm
    return x * flips if back else x


def undo(weights, input_scale, rotation):
    """Undoes the scaling and rotation of f32 [rows, cols]."""
    if rotation:
        weights = rotate(weights, rotation["block"], rotation["seed"], back=True)
    if input_scale is not None:
        weights = weights / np.frombuffer(input_scale, "<f2").astype(np.float32)
    return weights


def decode_tile(tile):
    """Decodes an arrowquant.Tile or Quantized, as `decode` does."""
    recipe = tile.recipe
    return decode(
        bytes(tile.codes), bytes(tile.scales), tile.biases and bytes(tile.biases), tile.rows,
        tile.cols, recipe.format, recipe.group_size, recipe.scheme, recipe.scale_dtype,
    )


def minmax(w, format, scheme, group, dtype="<f2"):
    """Returns codes, one per byte, and scales and biases of `dtype`, by the formulas of docs/format.md."""
    rows, cols = w.shape
    bits, z = BITS[format], np.float32(ZERO_POINT[format])
    group = group or max(cols, 1)
    codes, scales, biases = [], [], []
    for start in range(0, cols, group):
        x = w[:, start : start + group]
        low, high = x.min(axis=1), x.max(axis=1)
        if scheme == "affine":
            scale, bias, zero = (high - low) / np.float32(2**bits - 1), low, np.float32(0)
        else:
            extreme = np.where(high >= -low, high, low)
            scale = np.abs(extreme) / z if bits == 2 else -extreme / z
            bias, zero = np.zeros(rows, np.float32), z
        scales.append(scale.astype(dtype))
        biases.append(bias.astype(dtype))
        scale, bias = scales[-1].astype(np.float32), biases[-1].astype(np.float32)
        with np.errstate(divide="ignore"):
            inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        exact = (x - bias[:, None]) * inverse[:, None] + zero
        codes.append(np.rint(np.clip(exact, 0, 2**bits - 1)).astype(np.uint8))
    stack = lambda planes: np.stack(planes, axis=1) if planes else np.zeros((rows, 0), dtype)
    codes = np.concatenate(codes, axis=1) if codes else np.zeros((rows, 0), np.uint8)
    return codes, stack(scales), stack(biases)


def cosine(a, b):
    a, b = np.float64(a).ravel(), np.float64(b).ravel()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def sqnr_db(w, y):
    w, y = np.float64(w).ravel(), np.float64(y).ravel()
    return 10 * np.log10((w * w).sum() / ((w - y) ** 2).sum())


def address(view):
    """Returns the address of a buffer."""
    return np.asarray(view).ctypes.data

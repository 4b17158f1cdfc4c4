"""Kernels over memory: rows of weights to codes and scales, and back. No files, no threads; any
number of threads may call them at once."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ._buffers import Memory, Output, array_of
from ._library import (
    DTYPES,
    FORMATS,
    GAINS,
    METHODS,
    SCHEMES,
    aq_quality,
    aq_recipe,
    call,
    code_of,
    lib,
)
from .errors import ArgumentError

_FLOATS = {name: DTYPES[name] for name in ("f32", "f16", "bf16")}
_SCALES = {name: DTYPES[name] for name in ("f16", "f32")}
_QUANTIZED = {name: code for name, code in FORMATS.items() if code}


@dataclass(frozen=True)
class Recipe:
    """How weights are quantized, and how their planes are laid out."""

    #: "int2", "int4" or "int8".
    format: str = "int4"
    #: Weights that share a scale: a multiple of 16 up to 1024, or 0 for a whole row.
    group_size: int = 128
    #: "symmetric" or "affine".
    scheme: str = "symmetric"
    #: Storage of scales and biases: "f16" or "f32".
    scale_dtype: str = "f16"
    #: How scales are chosen: "lsq" or "minmax" (or, in runs with a calibration, "gptq"). Decoding
    #: needs neither this nor the next.
    method: str = "lsq"
    #: Whether rows get their amplitude back: "unit" or "lsq"; "auto" is "unit" for 2 and 4 bits.
    gain: str = "auto"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return code_of(_QUANTIZED, self.format, "format")

    def groups(self, cols: int) -> int:
        """Scales of a row of `cols` weights."""
        return -(-cols // (self.group_size or max(cols, 1)))

    def _struct(self) -> aq_recipe:
        if not 0 <= self.group_size < 1 << 32:
            raise ArgumentError(f"group_size: {self.group_size} is no multiple of 16 up to 1024")
        recipe = aq_recipe()
        recipe.format = self.bits
        recipe.group_size = self.group_size
        recipe.scheme = code_of(SCHEMES, self.scheme, "scheme")
        recipe.scale_dtype = code_of(_SCALES, self.scale_dtype, "scale_dtype")
        recipe.method = code_of(METHODS, self.method, "method")
        recipe.gain = code_of(GAINS, self.gain, "gain")
        return recipe


@dataclass(frozen=True)
class Quality:
    """What quantizing came to, measured on the weights as they decode."""

    #: Cosine of the angle between original and decoded weights.
    cosine: float
    #: Signal to quantization noise in dB; infinite without any error.
    sqnr_db: float
    #: Scales and biases counted; NaN without weights.
    bits_per_weight: float


class Planes(NamedTuple):
    """Planes as numpy arrays: codes uint8 [rows, bytes of a row], scales and biases float16 or
    float32 [rows, groups]; None where there are none."""

    codes: Any
    scales: Any
    biases: Any


class HasPlanes(Protocol):
    """A Quantized, a Tile, or anything else that has planes."""

    @property
    def codes(self) -> Any: ...
    @property
    def scales(self) -> Any: ...
    @property
    def biases(self) -> Any: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def recipe(self) -> Recipe | None: ...


def shaped(planes: HasPlanes) -> Planes:
    """The planes of a quantized matrix as numpy arrays, where they lie."""
    recipe = _recipe_of(planes)
    dtype = {"f16": "<f2", "f32": "<f4"}[recipe.scale_dtype]
    stride = -(-planes.cols * recipe.bits // 8)
    groups = (planes.rows, recipe.groups(planes.cols))
    biases = planes.biases
    return Planes(
        array_of(memoryview(planes.codes), "u1", (planes.rows, stride)),
        array_of(memoryview(planes.scales), dtype, groups),
        None if biases is None else array_of(memoryview(biases), dtype, groups),
    )


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix of `rows` x `cols` weights.

    `codes`, `scales` and `biases` (None when symmetric) are bytes, one row after the other;
    `numpy()` gives them shapes. To decode planes from elsewhere, make one of them.
    """

    codes: Any
    scales: Any
    biases: Any
    #: None for planes that were not quantized here.
    quality: Quality | None
    recipe: Recipe
    rows: int
    cols: int

    def numpy(self) -> Planes:
        """The planes as numpy arrays, where they lie."""
        return shaped(self)


def plane_sizes(rows: int, cols: int, recipe: Recipe = Recipe()) -> tuple[int, int, int]:
    """Bytes of codes, scales and biases of `rows` rows of `cols` weights."""
    sizes = [ctypes.c_size_t() for _ in range(3)]
    _check_counts(rows=rows, cols=cols)
    outputs = [ctypes.byref(size) for size in sizes]
    call(lib.aq_plane_sizes, ctypes.byref(recipe._struct()), rows, cols, *outputs)
    return sizes[0].value, sizes[1].value, sizes[2].value


def quantize_rows(
    weights: Any,
    *,
    rows: int | None = None,
    cols: int | None = None,
    dtype: str | None = None,
    bits: int | None = None,
    format: str | None = None,
    group_size: int = 128,
    scheme: str = "symmetric",
    scale_dtype: str = "f16",
    method: str = "lsq",
    gain: str = "auto",
    importance: Any = None,
    out: Any = None,
) -> Quantized:
    """Quantizes a matrix of f32, f16 or bf16 weights.

    `weights` is C-contiguous memory with the buffer protocol. Its shape, if it has two dimensions
    or more, gives `rows` and `cols` (all dimensions but the first fold into columns); else one of
    them, at least, is to be given. bf16 is given as 16 bit numbers with `dtype="bf16"`.

    `bits` (2, 4, 8; or `format`, "int4") is 4 unless given; the other settings are those of
    `Recipe`. `importance` weighs the columns in the choice of scales: `cols` f32 >= 0. `out` is a
    triple of writable buffers for codes, scales and biases (None when symmetric) of the lengths
    that `plane_sizes` says; without it they are new bytearrays.

    Raises TensorError, naming the row, for weights that are NaN or infinite, and where f16 does
    not hold a scale: then choose `scale_dtype="f32"`.
    """
    if bits is not None and format is not None and format != f"int{bits}":
        raise ArgumentError(f"bits {bits} and format {format!r} contradict each other")
    recipe = Recipe(
        format or f"int{4 if bits is None else bits}", group_size, scheme, scale_dtype, method, gain
    )
    memory = Memory(weights, "weights")
    kind = dtype or memory.dtype or "unknown"
    code = code_of(_FLOATS, kind, "dtype of the weights")
    rows, cols = _matrix(memory, 2 if kind != "f32" else 4, rows, cols)
    sizes = plane_sizes(rows, cols, recipe)
    if out is None:
        planes = [bytearray(size) for size in sizes]
        # Nothing is None where there are no biases.
        given: list[Any] = [*planes[:2], planes[2] if scheme == "affine" else None]
    else:
        given = list(out)
        if len(given) != 3:
            raise ArgumentError("out must be codes, scales and biases")
    memories = [_plane(plane, what, writable=True) for plane, what in zip(given, _NAMES)]
    weight = None
    if importance is not None:
        weight = _f32(importance, "importance")
        if weight.nbytes != 4 * cols:
            raise ArgumentError(f"importance has {weight.nbytes // 4} numbers, needed are {cols}")
    quality = aq_quality()
    call(
        lib.aq_quantize_rows,
        ctypes.byref(recipe._struct()),
        memory,
        memory.nbytes,
        code,
        rows,
        cols,
        weight,
        *_arguments(memories),
        ctypes.byref(quality),
    )
    measured = Quality(quality.cosine, quality.sqnr_db, quality.bits_per_weight)
    return Quantized(given[0], given[1], given[2], measured, recipe, rows, cols)


def dequantize_rows(planes: HasPlanes, *, dtype: str = "f32", out: Any = None) -> Any:
    """Decodes a Quantized or a Tile as "f32", "f16" or "bf16".

    Returns a numpy array of [rows, cols] (bf16 as uint16), or without numpy an `array.array` of
    f32, or bytes of f16 and bf16; or `out`, a writable buffer of as many bytes, if that is given.
    """
    code = code_of(_FLOATS, dtype, "dtype")
    recipe = _recipe_of(planes)
    memories = _planes(planes)
    result = out
    if out is None:
        output = Output((planes.rows, planes.cols), dtype)
        memory = output.memory
    else:
        memory = Memory(out, "out", writable=True)
    call(
        lib.aq_dequantize_rows,
        ctypes.byref(recipe._struct()),
        *_arguments(memories),
        planes.rows,
        planes.cols,
        code,
        memory,
        memory.nbytes,
    )
    return output.result() if out is None else result


def matvec(planes: HasPlanes, x: Any) -> Any:
    """Multiplies a Quantized or a Tile (rows x cols) with a vector of `cols` f32, or with several,
    [batch, cols].

    Returns f32 of [rows] or [batch, rows], as a numpy array or, without numpy, an `array.array`.
    """
    recipe = _recipe_of(planes)
    memories = _planes(planes)
    vectors, batch, shape = vectors_of(x, planes.rows, planes.cols)
    output = Output(shape, "f32")
    call(
        lib.aq_matvec,
        ctypes.byref(recipe._struct()),
        *_arguments(memories),
        planes.rows,
        planes.cols,
        vectors,
        vectors.nbytes // 4,
        batch,
        output.memory,
        output.memory.nbytes // 4,
    )
    return output.result()


@dataclass(frozen=True)
class Activations:
    """A vector, or several, quantized to signed bytes group by group: x is about scale * value.

    `values` (i8), `scales` and `sums` (f32) are numpy arrays or, without numpy, `array.array`s.
    """

    #: As many as there are values in x, in an order that depends on the recipe and the length.
    values: Any
    #: For each group of each vector its scale.
    scales: Any
    #: The scale times the sum of the group's values.
    sums: Any
    #: Of the matrix they were made for.
    recipe: Recipe
    #: That of x: [cols] or [batch, cols].
    shape: tuple[int, ...]


def quantize_vectors(x: Any, like: HasPlanes) -> Activations:
    """Quantizes a vector of f32, or several, [batch, cols], for `matvec_int8` with the matrix `like`,
    or any other of as many columns whose recipe has the same format and group size.

    In each group of the matrix's the largest magnitude becomes 127, all others in proportion.
    """
    recipe = _recipe_of(like)
    vectors, batch, _ = vectors_of(x, like.rows, like.cols)
    groups = recipe.groups(like.cols)
    scaled = (groups,) if len(vectors.shape) == 1 else (batch, groups)
    values, scales, sums = Output(vectors.shape, "i8"), Output(scaled, "f32"), Output(scaled, "f32")
    call(
        lib.aq_quantize_vectors,
        ctypes.byref(recipe._struct()),
        vectors,
        vectors.nbytes // 4,
        like.cols,
        batch,
        values.memory,
        values.memory.nbytes,
        scales.memory,
        scales.memory.nbytes // 4,
        sums.memory,
        sums.memory.nbytes // 4,
    )
    return Activations(values.result(), scales.result(), sums.result(), recipe, vectors.shape)


def matvec_int8(planes: HasPlanes, x: Activations) -> Any:
    """As `matvec`, with vectors of signed bytes: codes and bytes are multiplied as integers, which
    is exact, and faster than f32 where the CPU has instructions for that."""
    recipe = _recipe_of(planes)
    memories = _planes(planes)
    if x.shape[-1] != planes.cols:
        raise ArgumentError(f"x has vectors of {x.shape[-1]}, the matrix has {planes.cols} columns")
    # What another format or group size makes of the same vectors may be as long.
    ours, theirs = ((r.format, r.group_size) for r in (recipe, x.recipe))
    if ours != theirs:
        raise ArgumentError(
            f"x was quantized for {theirs[0]} in groups of {theirs[1]}, the matrix is {ours[0]} "
            f"in groups of {ours[1]}"
        )
    values, scales, sums = Memory(x.values, "values"), _f32(x.scales, "scales"), _f32(x.sums, "sums")
    output = Output((*x.shape[:-1], planes.rows), "f32")
    call(
        lib.aq_matvec_int8,
        ctypes.byref(recipe._struct()),
        *_arguments(memories),
        planes.rows,
        planes.cols,
        values,
        values.nbytes,
        scales,
        scales.nbytes // 4,
        sums,
        sums.nbytes // 4,
        1 if len(x.shape) == 1 else x.shape[0],
        output.memory,
        output.memory.nbytes // 4,
    )
    return output.result()


class Comparison(NamedTuple):
    """How far values are from their originals."""

    #: Cosine of the angle between them.
    cosine: float
    #: Signal to quantization noise in dB; infinite without any difference.
    sqnr_db: float


def compare(
    a: Any, b: Any, *, a_dtype: str | None = None, b_dtype: str | None = None
) -> Comparison:
    """Measures how far `b` is from the original `a`: buffers of as many values, each f32, f16 or
    bf16 (16 bit numbers with `a_dtype="bf16"`), whatever their shapes.

    Raises ArgumentError for values that are NaN or infinite.
    """
    arguments: list[Any] = []
    for what, data, dtype in (("a", a, a_dtype), ("b", b, b_dtype)):
        memory = Memory(data, what)
        kind = dtype or memory.dtype or "unknown"
        arguments += [memory, memory.nbytes, code_of(_FLOATS, kind, f"dtype of {what}")]
    cosine, sqnr_db = ctypes.c_double(), ctypes.c_double()
    call(lib.aq_compare, *arguments, ctypes.byref(cosine), ctypes.byref(sqnr_db))
    return Comparison(cosine.value, sqnr_db.value)


def pack(codes: Any, bits: int) -> bytearray:
    """Packs codes of one row, one a byte, as a codes plane has them."""
    format = code_of(_QUANTIZED, f"int{bits}", "format")
    memory = Memory(codes, "codes")
    if memory.itemsize != 1:
        raise ArgumentError(f"codes are one a byte, not {memory.itemsize} bytes each")
    packed = bytearray(-(-memory.nbytes * bits // 8))
    output = Memory(packed, "packed")
    call(lib.aq_pack, format, memory, memory.nbytes, output, output.nbytes)
    return packed


def unpack(packed: Any, count: int, bits: int) -> bytearray:
    """Unpacks `count` codes of one row of a codes plane, one a byte."""
    format = code_of(_QUANTIZED, f"int{bits}", "format")
    _check_counts(count=count)
    memory = Memory(packed, "packed")
    codes = bytearray(count)
    output = Memory(codes, "codes")
    call(lib.aq_unpack, format, memory, memory.nbytes, output, output.nbytes)
    return codes


_NAMES = ("codes", "scales", "biases")


def _recipe_of(planes: HasPlanes) -> Recipe:
    if planes.recipe is None:
        raise ArgumentError("a kept tensor has no codes to decode")
    return planes.recipe


def _plane(plane: Any, what: str, writable: bool = False) -> Memory | None:
    return None if plane is None else Memory(plane, what, writable)


def _planes(planes: HasPlanes) -> list[Memory | None]:
    return [_plane(getattr(planes, what), what) for what in _NAMES]


def _arguments(memories: list[Memory | None]) -> list[Any]:
    return [part for memory in memories for part in (memory, memory.nbytes if memory else 0)]


def _f32(data: Any, what: str) -> Memory:
    memory = Memory(data, what)
    if memory.dtype != "f32":
        raise ArgumentError(f"{what} must be f32, not {memory.dtype or memory.view.format!r}")
    return memory


def _check_counts(**counts: int) -> None:
    for what, count in counts.items():
        if count < 0:
            raise ArgumentError(f"{what}: {count} is negative")


def _matrix(memory: Memory, size: int, rows: int | None, cols: int | None) -> tuple[int, int]:
    """Rows and columns, of which what is not given follows from the shape or the length."""
    count = memory.nbytes // size
    if rows is None and cols is None:
        if len(memory.shape) < 2 or memory.itemsize != size:
            raise ArgumentError("weights of one dimension need rows or cols")
        rows = memory.shape[0]
    if rows is not None and cols is None:
        if rows == 0 and len(memory.shape) >= 2:
            cols = 1
            for dim in memory.shape[1:]:
                cols *= dim
        else:
            cols = count // rows if rows > 0 else 0
    elif rows is None and cols is not None:
        rows = count // cols if cols > 0 else 0
    assert rows is not None and cols is not None
    _check_counts(rows=rows, cols=cols)
    # What does not come out even, the library refuses.
    return rows, cols


def vectors_of(x: Any, rows: int, cols: int) -> tuple[Memory, int, tuple[int, ...]]:
    """The memory of vectors, how many there are, and the shape of what they become."""
    vectors = _f32(x, "x")
    if len(vectors.shape) == 2:
        if vectors.shape[1] != cols:
            raise ArgumentError(f"x has vectors of {vectors.shape[1]}, the matrix has {cols} columns")
        return vectors, vectors.shape[0], (vectors.shape[0], rows)
    if vectors.shape != (cols,):
        raise ArgumentError(f"x has shape {vectors.shape}, the matrix has {cols} columns")
    return vectors, 1, (rows,)

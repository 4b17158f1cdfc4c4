"""Kernels: rows of weights to codes and scales, and back; products with vectors; comparison.

They take a tensor of a model, one of its tiles, or a `Matrix` in memory of any kind:

    with arrowquant.open("model.parquet") as model:
        y = kernels.matvec(model["blocks.0.attn.qkv.weight"], x)

Nothing here reads files or starts threads; any number of threads may call it at once."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Union

from ._buffers import ITEM_BYTES, Memory, Output, array_of
from ._library import (
    DTYPES,
    FORMATS,
    GAINS,
    METHODS,
    SCHEMES,
    aq_matrix,
    aq_planes,
    aq_quality,
    aq_recipe,
    aq_vectors,
    call,
    code_of,
    lib,
)
from .activations import QuantizedActivations, quantize_activations
from .errors import ArgumentError, TensorError

__all__ = [
    "Comparison",
    "Matrix",
    "Planes",
    "Quality",
    "QuantizedActivations",
    "Recipe",
    "Rotation",
    "Vectors",
    "compare",
    "dequantize_rows",
    "matvec",
    "matvec_int8",
    "plane_sizes",
    "quantize_activations",
    "quantize_rows",
    "quantize_vectors",
    "transform_vectors",
]

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

    def _group_size(self) -> int:
        """One that C does not cut."""
        if not 0 <= self.group_size < 1 << 32:
            raise ArgumentError(f"group_size: {self.group_size} is not a multiple of 16 up to 1024")
        return self.group_size

    def _struct(self) -> aq_recipe:
        recipe = aq_recipe()
        recipe.format = self.bits
        recipe.group_size = self._group_size()
        recipe.scheme = code_of(SCHEMES, self.scheme, "scheme")
        recipe.scale_dtype = code_of(_SCALES, self.scale_dtype, "scale_dtype")
        recipe.method = code_of(METHODS, self.method, "method")
        recipe.gain = code_of(GAINS, self.gain, "gain")
        return recipe


@dataclass(frozen=True)
class Quality:
    """Quality of quantized rows, measured on the weights as they decode."""

    #: Cosine of the angle between original and decoded weights.
    cosine: float
    #: Signal to quantization noise in dB; infinite without any error.
    sqnr_db: float
    #: Bits per weight, scales and biases counted; NaN without weights.
    bits_per_weight: float


@dataclass(frozen=True)
class Rotation:
    """How columns were rotated before they were quantized, see docs/format.md."""

    #: Columns that were rotated together.
    block: int
    #: Seed of the signs; 0 for none.
    seed: int


class Planes(NamedTuple):
    """Planes as numpy arrays: codes uint8 [rows, bytes of a row], scales and biases float16 or
    float32 [rows, groups]; None where there are none."""

    codes: Any
    scales: Any
    biases: Any


@dataclass(frozen=True)
class Matrix:
    """A matrix of `rows` x `cols` weights, quantized or kept, in memory of any kind.

    `quantize_rows` makes one, and `tile.matrix` of a model's tensor is one. For planes from elsewhere,
    make your own. `matrix[10:20]` is the same for some of its rows, without a copy.
    """

    #: Packed codes, one row after another: anything with the buffer protocol. When kept, the values.
    codes: Any = field(repr=False)
    #: One scale per group, row after row; None when kept.
    scales: Any = field(repr=False)
    #: One bias per group, row after row; None unless the scheme is affine.
    biases: Any = field(repr=False)
    #: How weights are quantized; None when kept.
    recipe: Recipe | None
    rows: int
    cols: int
    #: Element type of kept weights. In a view of a quantized tensor, the type in the source.
    dtype: str | None = None
    #: Factor that each column was multiplied by before quantization: memory of f16, or None.
    input_scale: Any = field(default=None, repr=False)
    #: How columns were rotated after that; or None.
    rotation: Rotation | None = None
    #: Measured when it was quantized here; None for planes from elsewhere.
    quality: Quality | None = None

    @property
    def format(self) -> str:
        """"int2", "int4" or "int8"; "kept" for weights that are not quantized."""
        return self.recipe.format if self.recipe else "kept"

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Itself, for the kernels."""
        return (self,)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice) -> Matrix:
        """Some of its rows, in the same memory: a slice without a step."""
        start, stop = _range(rows, self.rows)

        def part(plane: Any) -> Any:
            if plane is None:
                return None
            view = memoryview(plane).cast("B")
            row = view.nbytes // self.rows if self.rows else 0
            if row * self.rows != view.nbytes:
                raise TensorError("rows of the matrix are not whole bytes")
            return view[start * row : stop * row]

        planes = part(self.codes), part(self.scales), part(self.biases)
        codes, scales, biases = planes
        return replace(
            self, codes=codes, scales=scales, biases=biases, rows=stop - start, quality=None
        )

    def numpy(self) -> Planes:
        """The planes as numpy arrays over the same memory."""
        recipe = self.recipe
        codes = memoryview(self.codes)
        if recipe is None:
            whole = self.rows and codes.nbytes % self.rows == 0
            shape = (self.rows, codes.nbytes // self.rows) if whole else (codes.nbytes,)
            return Planes(array_of(codes, "u1", shape), None, None)
        dtype = {"f16": "<f2", "f32": "<f4"}[recipe.scale_dtype]
        stride = -(-self.cols * recipe.bits // 8)
        groups = (self.rows, recipe.groups(self.cols))
        biases = self.biases
        return Planes(
            array_of(codes, "u1", (self.rows, stride)),
            array_of(memoryview(self.scales), dtype, groups),
            None if biases is None else array_of(memoryview(biases), dtype, groups),
        )

    def _struct(self) -> _Struct:
        """The matrix for C, which refers to memory that the result keeps."""
        made = aq_matrix()
        made.rows, made.cols = self.rows, self.cols
        recipe = self.recipe
        if recipe is not None:
            made.format, made.group_size = recipe.bits, recipe._group_size()
            made.scheme = code_of(SCHEMES, recipe.scheme, "scheme")
            made.scale_dtype = code_of(_SCALES, recipe.scale_dtype, "scale_dtype")
        if self.dtype is not None:
            made.dtype = code_of(DTYPES, self.dtype, "dtype")
        elif recipe is None:
            raise ArgumentError("a kept matrix needs its dtype")
        keep = []
        for what in (*_NAMES, "input_scale"):
            data = getattr(self, what)
            if data is not None:
                memory = Memory(data, what)
                keep.append(memory)
                setattr(made, what, memory.address)
                setattr(made, f"{what}_len", memory.nbytes)
        if self.rotation is not None:
            made.rotation_block, made.rotation_seed = self.rotation.block, self.rotation.seed
        return _Struct(made, keep)


class _Struct(NamedTuple):
    """A struct of C's, and what must live as long."""

    struct: Any
    keep: list[Memory]

    @property
    def pointer(self) -> Any:
        return ctypes.byref(self.struct)


class _HasMatrices(Protocol):
    @property
    def matrices(self) -> tuple[Matrix, ...]: ...


# A kernel takes a Matrix, a Tile, or a Tensor, whose tiles are its matrices.
AnyMatrix = Union[Matrix, _HasMatrices]


class _Parts:
    """The matrices of what a kernel was given, one below the other."""

    def __init__(self, matrix: AnyMatrix) -> None:
        matrices = getattr(matrix, "matrices", None)
        if not isinstance(matrices, tuple):
            kind = type(matrix).__name__
            raise TypeError(f"a Matrix, or a tensor or tile of a model, is needed, not {kind}")
        self.matrices: tuple[Matrix, ...] = matrices
        self.rows = sum(part.rows for part in matrices)
        self.cols = matrices[0].cols if matrices else 0

    @property
    def first(self) -> Matrix:
        if not self.matrices:
            raise TensorError("the tensor has no rows")
        return self.matrices[0]

    def __iter__(self) -> Iterator[tuple[int, Matrix]]:
        """Each with its first row."""
        row = 0
        for part in self.matrices:
            yield row, part
            row += part.rows

    def products(self, function: Any, shape: tuple[int, ...], batch: int, x: list[Any]) -> Any:
        """Calls a function that multiplies each part with `batch` vectors, the arguments `x`; the
        products have `shape`."""
        output = Output(shape, "f32")
        start = output.memory.address or 0
        for row, part in self:
            matrix = part._struct()
            if part.rows == self.rows:
                count = batch * self.rows
                call(function, matrix.pointer, *x, ctypes.c_void_p(start or None), count)
                continue
            own = (ctypes.c_float * (batch * part.rows))()
            call(function, matrix.pointer, *x, own, batch * part.rows)
            for i in range(batch):
                to = start + 4 * (i * self.rows + row)
                from_ = ctypes.addressof(own) + 4 * i * part.rows
                ctypes.memmove(to, from_, 4 * part.rows)
        return output.result()


def plane_sizes(rows: int, cols: int, recipe: Recipe = Recipe()) -> tuple[int, int, int]:
    """Returns the bytes of codes, scales and biases of `rows` rows of `cols` weights."""
    _check_counts(rows=rows, cols=cols)
    planes = aq_planes()
    call(lib.aq_plane_sizes, ctypes.byref(recipe._struct()), rows, cols, ctypes.byref(planes))
    return planes.codes_len, planes.scales_len, planes.biases_len


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
) -> Matrix:
    """Quantizes a matrix of f32, f16 or bf16 weights.

    `weights` is C-contiguous memory with the buffer protocol. Its shape, if it has two dimensions
    or more, gives `rows` and `cols` (all dimensions but the first fold into columns); otherwise at
    least one of them is required. bf16 is an array of ml_dtypes, or 16-bit numbers with
    `dtype="bf16"`.

    `bits` (2, 4, 8; or `format`, "int4") is 4 by default; the other settings are those of
    `Recipe`. `importance` weighs the columns in the choice of scales: `cols` f32 >= 0. `out` is a
    triple of writable buffers for codes, scales and biases (None when symmetric) with the lengths
    that `plane_sizes` returns; without it they are new bytearrays.

    Raises TensorError, naming the row, for weights that are NaN or infinite, and if f16 cannot
    hold a scale: then choose `scale_dtype="f32"`.
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
        made = [bytearray(size) for size in sizes]
        # Nothing is None where there are no biases.
        given: list[Any] = [*made[:2], made[2] if scheme == "affine" else None]
    else:
        given = list(out)
        if len(given) != 3:
            raise ArgumentError("out must be codes, scales and biases")
    planes = aq_planes()
    memories = []
    for what, plane in zip(_NAMES, given):
        if plane is not None:
            room = Memory(plane, what, writable=True)
            memories.append(room)
            setattr(planes, what, room.address)
            setattr(planes, f"{what}_len", room.nbytes)
    weight = None
    if importance is not None:
        weight = _f32(importance, "importance")
        if weight.nbytes != 4 * cols:
            raise ArgumentError(f"importance has {weight.nbytes // 4} numbers, expected {cols}")
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
        ctypes.byref(planes),
        None,
        ctypes.byref(quality),
    )
    measured = Quality(quality.cosine, quality.sqnr_db, quality.bits_per_weight)
    return Matrix(given[0], given[1], given[2], recipe, rows, cols, quality=measured)


def dequantize_rows(matrix: AnyMatrix, *, dtype: str = "f32", out: Any = None) -> Any:
    """Decodes a matrix as "f32", "f16" or "bf16". Kept weights of these types are converted.

    Returns a numpy array of [rows, cols] (bf16 as ml_dtypes.bfloat16 if that package is installed,
    else as uint16), or without numpy an `array.array` of f32, or bytes of f16 and bf16; or `out`, a
    writable buffer of as many bytes, if that is given.
    """
    code = code_of(_FLOATS, dtype, "dtype")
    parts = _Parts(matrix)
    output = None if out is not None else Output((parts.rows, parts.cols), dtype)
    memory = Memory(out, "out", writable=True) if output is None else output.memory
    row_bytes = parts.cols * ITEM_BYTES[dtype]
    if memory.nbytes != parts.rows * row_bytes:
        expected = parts.rows * row_bytes
        raise ArgumentError(f"out has {memory.nbytes} bytes, expected {expected}")
    for row, part in parts:
        struct = part._struct()
        address = (memory.address or 0) + row * row_bytes
        call(
            lib.aq_dequantize_rows,
            struct.pointer,
            code,
            ctypes.c_void_p(address or None),
            part.rows * row_bytes,
        )
    return out if output is None else output.result()


def matvec(matrix: AnyMatrix, x: Any) -> Any:
    """Multiplies a quantized matrix (rows x cols) with a vector of `cols` f32, or with several,
    [batch, cols].

    Returns f32 of [rows] or [batch, rows], as a numpy array or, without numpy, an `array.array`.
    """
    parts = _Parts(matrix)
    vectors, batch, shape = vectors_of(x, parts.rows, parts.cols)
    given = [vectors, vectors.nbytes // 4, batch]
    return parts.products(lib.aq_matvec, shape, batch, given)


def transform_vectors(matrix: AnyMatrix, x: Any) -> Any:
    """Divides a vector of `cols` f32, or several, [batch, cols], by the matrix's input scale and
    rotates them, so that the planes can be multiplied with them as they are. Only for products of
    your own: the functions here do so by themselves. Returns f32 of the shape of `x`."""
    parts = _Parts(matrix)
    vectors, batch, _ = vectors_of(x, parts.rows, parts.cols)
    output = Output(vectors.shape, "f32")
    memory = output.memory
    if vectors.nbytes:
        ctypes.memmove(memory.address or 0, vectors.address or 0, vectors.nbytes)
    struct = parts.first._struct()
    call(lib.aq_transform_vectors, struct.pointer, memory, vectors.nbytes // 4, batch)
    return output.result()


@dataclass(frozen=True)
class Vectors:
    """A vector, or several, quantized to signed bytes group by group: x is about scale * value.

    `values` (i8), `scales` and `sums` (f32) are numpy arrays or, without numpy, `array.array`s.
    """

    #: One for each value of x, in an order of the library's own.
    values: Any
    #: The scale of each group of each vector.
    scales: Any
    #: The scale times the sum of the group's values.
    sums: Any
    #: Shape of x: [cols] or [batch, cols].
    shape: tuple[int, ...]
    #: Matrices that they fit: format, group size, cols, and how columns were transformed.
    fits: tuple[int, int, int, int] = field(repr=False)


def quantize_vectors(matrix: AnyMatrix, x: Any) -> Vectors:
    """Quantizes a vector of f32, or several, [batch, cols], for `matvec_int8` with this matrix, or with
    any other of the same cols, format, group size, input scale and rotation.

    In each group of a vector the largest magnitude becomes 127, all others in proportion.
    """
    parts = _Parts(matrix)
    first = parts.first
    recipe = _recipe_of(first)
    vectors, batch, _ = vectors_of(x, parts.rows, parts.cols)
    groups = recipe.groups(parts.cols)
    scaled = (groups,) if len(vectors.shape) == 1 else (batch, groups)
    values, scales, sums = Output(vectors.shape, "i8"), Output(scaled, "f32"), Output(scaled, "f32")
    made = aq_vectors()
    made.values, made.values_count = values.memory.address, values.memory.nbytes
    made.scales, made.scales_count = scales.memory.address, scales.memory.nbytes // 4
    made.sums, made.sums_count = sums.memory.address, sums.memory.nbytes // 4
    struct = first._struct()
    count = vectors.nbytes // 4
    call(lib.aq_quantize_vectors, struct.pointer, vectors, count, batch, ctypes.byref(made))
    fits = made.format, made.group_size, made.cols, made.transform
    return Vectors(values.result(), scales.result(), sums.result(), vectors.shape, fits)


def matvec_int8(matrix: AnyMatrix, x: Vectors) -> Any:
    """Multiplies a quantized matrix with vectors of signed bytes, as `matvec` does with f32. Codes and
    bytes are multiplied as integers, which is exact, and faster than f32 if the CPU has instructions
    for it.

    Raises ArgumentError for vectors that were made for another kind of matrix."""
    parts = _Parts(matrix)
    values, scales, sums = Memory(x.values, "values"), _f32(x.scales, "scales"), _f32(x.sums, "sums")
    batch = math.prod(x.shape[:-1])
    given = aq_vectors()
    given.format, given.group_size, given.cols, given.transform = x.fits
    given.batch = batch
    given.values, given.values_count = values.address, values.nbytes
    given.scales, given.scales_count = scales.address, scales.nbytes // 4
    given.sums, given.sums_count = sums.address, sums.nbytes // 4
    shape = (*x.shape[:-1], parts.rows)
    return parts.products(lib.aq_matvec_int8, shape, batch, [ctypes.byref(given)])


class Comparison(NamedTuple):
    """Result of a comparison with original values."""

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


_NAMES = ("codes", "scales", "biases")


def _recipe_of(matrix: Matrix) -> Recipe:
    if matrix.recipe is None:
        raise TensorError("the matrix is kept, not quantized: decode it with dequantize_rows")
    return matrix.recipe


def _range(rows: slice, count: int) -> tuple[int, int]:
    """The first of some rows, and the one after the last."""
    if not isinstance(rows, slice):
        raise TypeError(f"rows must be a slice, not {type(rows).__name__}")
    start, stop, step = rows.indices(count)
    if step != 1:
        raise ArgumentError(f"rows: a step of {step} is not 1")
    return start, max(start, stop)


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
    # The library refuses lengths that do not match.
    return rows, cols


def vectors_of(x: Any, rows: int, cols: int) -> tuple[Memory, int, tuple[int, ...]]:
    """Returns the memory of vectors, their number, and the shape of their products."""
    vectors = _f32(x, "x")
    if len(vectors.shape) == 2:
        if vectors.shape[1] != cols:
            raise ArgumentError(f"x has vectors of {vectors.shape[1]}, the matrix has {cols} columns")
        return vectors, vectors.shape[0], (vectors.shape[0], rows)
    if vectors.shape != (cols,):
        raise ArgumentError(f"x has shape {vectors.shape}, the matrix has {cols} columns")
    return vectors, 1, (rows,)

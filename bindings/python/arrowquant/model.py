"""A quantized file, opened."""

from __future__ import annotations

import contextlib
import ctypes
import json
import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

from . import _arrow
from ._buffers import Memory, Output, array_of, need_numpy, numpy_or_none
from ._library import (
    DTYPES,
    FORMATS,
    SCHEMES,
    ArrowArrayStream,
    Handle,
    Owner,
    aq_activation_params,
    aq_tensor_view,
    borrow,
    call,
    code_of,
    encode,
    encode_path,
    lend,
    let_go,
    lib,
    make,
    name_of,
    text_of,
)
from ._run import Log, Progress, Run
from .errors import ArgumentError, UnknownTensor
from .kernels import (
    _FLOATS,
    Matrix,
    Planes,
    Recipe,
    Rotation,
    _range,
    transform_vectors,
    vectors_of,
)
from .report import Verification, number
from .source import Source, TensorInfo


@dataclass(frozen=True)
class ActivationParams:
    """Static parameters of activations, of some timesteps: q = round(x / scale + zero_point). Where
    a tensor has an input scale or a rotation, of what `Tensor.transform_activations` makes."""

    #: The first timestep.
    t_begin: int
    #: The one after the last.
    t_end: int
    scale: float
    zero_point: float


@dataclass(frozen=True)
class Tile:
    """Some rows of a tensor, without a copy: a `Matrix` over the file, and what the file says of it.

    `codes`, `scales` and `biases` are read-only memoryviews of bytes, of shape [rows, bytes of a
    row] (of one dimension if they are empty, or rows are not whole bytes); None if the tensor
    has no such plane. They stay valid as long as anything refers to them, even after the model is
    closed. `numpy()` gives them their types.
    """

    #: The rows, for the kernels.
    matrix: Matrix
    #: First row of the tensor in this tile.
    row_start: int
    #: XXH3-64 of the tile, see docs/format.md.
    checksum: int
    #: Cosine as measured when the file was written; None when kept.
    cosine: float | None
    #: SQNR as measured when the file was written, in dB; infinite without error, None when kept.
    sqnr_db: float | None
    #: Bits per weight, scales and biases counted; None without weights.
    bits_per_weight: float | None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrix in a tuple, for the kernels."""
        return (self.matrix,)

    @property
    def format(self) -> str:
        """"int2", "int4" or "int8"; "kept" for a tensor that is not quantized: codes are its values."""
        return self.matrix.format

    @property
    def dtype(self) -> str:
        """Type of the elements in the source."""
        return self.matrix.dtype or "unknown"

    @property
    def rows(self) -> int:
        """Rows of the matrix in this tile."""
        return self.matrix.rows

    @property
    def cols(self) -> int:
        """Weights in a row."""
        return self.matrix.cols

    @property
    def codes(self) -> memoryview:
        """Packed codes, or the values of a kept tensor."""
        return self.matrix.codes  # type: ignore[no-any-return]

    @property
    def scales(self) -> memoryview | None:
        """One scale per group; None when kept."""
        return self.matrix.scales  # type: ignore[no-any-return]

    @property
    def biases(self) -> memoryview | None:
        """One bias per group; None unless the scheme is affine."""
        return self.matrix.biases  # type: ignore[no-any-return]

    @property
    def recipe(self) -> Recipe | None:
        """How it is quantized; None when kept."""
        return self.matrix.recipe

    @property
    def group_size(self) -> int | None:
        """Weights that share a scale, 0 for a whole row; None when kept."""
        return self.recipe.group_size if self.recipe else None

    @property
    def scheme(self) -> str | None:
        """"symmetric" or "affine"; None when kept."""
        return self.recipe.scheme if self.recipe else None

    @property
    def scale_dtype(self) -> str | None:
        """"f16" or "f32"; None when kept."""
        return self.recipe.scale_dtype if self.recipe else None

    @property
    def input_scale(self) -> memoryview | None:
        """Factor that each column was multiplied by before quantization, as bytes of f16; or None.
        Kernels undo it, as they do the rotation."""
        return self.matrix.input_scale  # type: ignore[no-any-return]

    @property
    def rotation(self) -> Rotation | None:
        """How columns were rotated after that; or None."""
        return self.matrix.rotation

    def numpy(self) -> Planes:
        """The planes as read-only numpy arrays, without a copy: codes uint8 [rows, bytes of a row],
        scales and biases float16 or float32 [rows, groups]."""
        return self.matrix.numpy()


def _tile(handle: Handle, index: int, number_: int) -> Tile:
    view = aq_tensor_view()
    call(lib.aq_model_view, handle, index, number_, ctypes.byref(view))
    found = view.matrix

    def plane(address: int | None, length: int, stride: int) -> memoryview:
        bytes_ = borrow(address or 0, length, handle)
        return bytes_.cast("B", (found.rows, stride)) if stride and length else bytes_

    kept = found.format == FORMATS["kept"]
    affine = found.scheme == SCHEMES["affine"]
    recipe = None
    if not kept:
        recipe = Recipe(
            format=str(name_of(FORMATS, found.format)),
            group_size=found.group_size,
            scheme=str(name_of(SCHEMES, found.scheme)),
            scale_dtype=str(name_of(DTYPES, found.scale_dtype)),
        )
    scale, block = found.input_scale, found.rotation_block
    matrix = Matrix(
        codes=plane(found.codes, found.codes_len, found.codes_stride),
        scales=None if kept else plane(found.scales, found.scales_len, found.scales_stride),
        biases=plane(found.biases, found.biases_len, found.biases_stride) if affine else None,
        recipe=recipe,
        rows=found.rows,
        cols=found.cols,
        dtype=str(name_of(DTYPES, found.dtype)),
        input_scale=plane(scale, found.input_scale_len, 0) if scale else None,
        rotation=Rotation(block, found.rotation_seed) if block else None,
    )
    return Tile(
        matrix=matrix,
        row_start=view.row_start,
        checksum=view.checksum,
        cosine=number(view.cosine),
        sqnr_db=number(view.sqnr_db),
        bits_per_weight=number(view.bits_per_weight),
    )


class Tensor:
    """A tensor of a model. It stays usable after the model is closed.

    `tensor[10:20]` decodes some rows of its first dimension to f32, and `tensor[3]` one of them.
    numpy and PyTorch take the whole tensor, decoded to f32: `numpy.asarray(tensor)`,
    `torch.from_dlpack(tensor)`. For other types, and matrix rows, see `dequantize`; for products
    without decoding, `matvec` and `arrowquant.kernels`.
    """

    def __init__(self, handle: Handle, index: int, info: TensorInfo) -> None:
        self._handle = handle
        self._index = index
        #: Name, shape, and dtype in the source.
        self.info = info

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the tensor."""
        return self.info.shape

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tensor's rows, in order: most tensors have one tile. Nothing is copied, unless the file is
        compressed."""
        return tuple(_tile(self._handle, self._index, i) for i in range(self.info.tiles))

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices of its tiles, for the kernels."""
        return tuple(tile.matrix for tile in self.tiles)

    def dequantize(self, dtype: str = "f32", rows: slice | None = None) -> Any:
        """Decodes it as "f32", "f16" or "bf16"; kept floats are converted.

        Returns a numpy array of the tensor's shape, or, of some `rows` (a slice without a step) of
        its matrix, of [rows, cols]. bf16 is ml_dtypes.bfloat16 if that package is installed, else
        uint16. Without numpy an `array.array` of f32, or bytes of f16 and bf16.
        """
        if rows is None:
            return self._decode(dtype, 0, self.info.rows, self.info.shape)
        start, stop = _range(rows, self.info.rows)
        return self._decode(dtype, start, stop, (stop - start, self.info.cols))

    def _decode(self, dtype: str, start: int, stop: int, shape: tuple[int, ...]) -> Any:
        """Rows of the matrix, in an array of this shape."""
        code = code_of(_FLOATS, dtype, "dtype")
        output = Output(shape, dtype)
        memory = output.memory
        count = stop - start
        first = start if count else 0
        place = memory, memory.nbytes
        call(lib.aq_model_dequantize_rows, self._handle, self._index, first, count, code, *place)
        return output.result()

    def __len__(self) -> int:
        if not self.info.shape:
            raise TypeError("a scalar has no rows")
        return self.info.shape[0]

    # Not by its length: a tensor without rows is one all the same.
    def __bool__(self) -> bool:
        return True

    def __getitem__(self, rows: int | slice) -> Any:
        """Decodes some rows of the first dimension to f32: `tensor[10:20]`, of [10, ...], or
        `tensor[3]`."""
        count, rest = len(self), self.info.shape[1:]
        if isinstance(rows, slice):
            start, stop = _range(rows, count)
            if not rest:
                # A vector is one row of its matrix.
                return self.dequantize()[start:stop]
            return self._decode("f32", start, stop, (stop - start, *rest))
        row = operator.index(rows)
        if not -count <= row < count:
            raise IndexError(f"there is no row {row}: there are {count}")
        row %= count
        if not rest:
            return float(self.dequantize()[row])
        return self._decode("f32", row, row + 1, rest)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The whole tensor as f32, for numpy."""
        if copy is False:
            raise ValueError("a tensor cannot become an array without decoding it")
        need_numpy()
        decoded = self.dequantize()
        return decoded if dtype is None else decoded.astype(dtype)

    def __dlpack__(self, **options: Any) -> Any:
        """The whole tensor as f32, for libraries that take arrays by DLPack, such as PyTorch."""
        return self.__array__().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # The CPU.

    def matvec(self, x: Any) -> Any:
        """Multiplies it (rows x cols) with a vector of `cols` f32, or with several, [batch, cols].

        Returns f32 of [rows] or [batch, rows], as a numpy array or, without numpy, an
        `array.array`. The tensor must be quantized.
        """
        vectors, batch, shape = vectors_of(x, self.info.rows, self.info.cols)
        output = Output(shape, "f32")
        call(
            lib.aq_model_matvec,
            self._handle,
            self._index,
            vectors,
            vectors.nbytes // 4,
            batch,
            output.memory,
            output.memory.nbytes // 4,
        )
        return output.result()

    @property
    def input_scale(self) -> Any:
        """Factor that each column was multiplied by before quantization: a read-only numpy array of
        float16 (without numpy a memoryview of its bytes), or None."""
        scale = _tile(self._handle, self._index, 0).input_scale
        if scale is None or numpy_or_none() is None:
            return scale
        return array_of(scale, "<f2", (self.info.cols,))

    @property
    def rotation(self) -> Rotation | None:
        """How columns were rotated after that; or None."""
        return _tile(self._handle, self._index, 0).rotation

    def activation_params(self, timestep: int) -> ActivationParams:
        """The static parameters of its activations at a timestep; `TensorError` where the file has
        none for it."""
        params = aq_activation_params()
        out = ctypes.byref(params)
        call(lib.aq_model_activation_params, self._handle, self._index, timestep, out)
        return ActivationParams(params.t_begin, params.t_end, params.scale, params.zero_point)

    def transform_activations(self, x: Any) -> Any:
        """Transforms a vector of `cols` f32, or several, [batch, cols], so that the quantized weights
        can be multiplied with them as they are in the file: divides them by the input scale, and
        rotates them. `matvec` does so by itself. Returns what `matvec` does, of the shape of `x`."""
        return transform_vectors(self, x)

    def __repr__(self) -> str:
        info = self.info
        return f"<arrowquant.Tensor {info.name!r} {info.dtype} {list(info.shape)}>"


class Metadata(Mapping[str, str]):
    """The file's footer, by key (docs/format.md)."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @cached_property
    def _entries(self) -> dict[str, str]:
        text = text_of(lib.aq_model_metadata_to_json, self._handle)
        return json.loads(text or "{}")  # type: ignore[no-any-return]

    def __getitem__(self, key: str) -> str:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Model(Owner, Mapping[str, Tensor]):
    """A quantized file, opened: its tensors by name, in the order of the file.

        with arrowquant.open("model.parquet") as model:
            weights = model["blocks.0.attn.qkv.weight"].dequantize()

    The file is mapped into memory and must not be written into while it is open; another may be
    put in its place. Tensors, tiles and arrays that were got from it stay good after `close`: the
    file is let go when the last of them is.
    """

    def __init__(self, file: Any) -> None:
        if isinstance(file, (str, os.PathLike)):
            path = encode_path(file, "path")
            self._handle = make(lib.aq_model_free, lib.aq_model_open, path)
        else:
            memory = Memory(file, "the file")
            # Arrays that were exported may need it longer than the model does.
            kept = let_go, lend(memory)
            self._handle = make(
                lib.aq_model_free, lib.aq_model_open_memory, memory, memory.nbytes, *kept
            )

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        handle = self._open()
        infos = (
            TensorInfo.read(lib.aq_model_tensor, handle, index)
            for index in range(lib.aq_model_count(handle))
        )
        return {info.name: Tensor(handle, index, info) for index, info in enumerate(infos)}

    def _found(self) -> dict[str, Tensor]:
        self._open()
        return self._tensors

    def close(self) -> None:
        super().close()
        self.__dict__.pop("_tensors", None)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._found()[name]
        except KeyError:
            raise UnknownTensor(f"tensor {name!r}: there is no such tensor") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    # A mapping's own would compare contents.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def metadata(self) -> Metadata:
        """The file's footer, by key (docs/format.md): `arrowquant.config` and so on."""
        return Metadata(self._open())

    def verify(
        self,
        original: Any = None,
        min_cosine: float | None = None,
        *,
        progress: Union[bool, Progress, None] = None,
        log: Log | None = None,
        threads: int = 0,
    ) -> Verification:
        """Checks every checksum. With an `original` (a Source, or what `quantize` takes as its
        input), also that both hold the same tensors, that kept ones are equal, that quantized ones
        are as close to it as the file says, and that no cosine is below `min_cosine` (None: any
        will do)."""
        run = Run(progress, log, threads)
        handle = self._open()
        failures, out = ctypes.c_size_t(), ctypes.c_void_p()
        with contextlib.ExitStack() as stack:
            source = None
            if original is not None:
                source = stack.enter_context(Source.of(original)._open().shared())
            run.call(
                lib.aq_model_verify,
                handle,
                source,
                float("nan") if min_cosine is None else min_cosine,
                ctypes.byref(run.options),
                ctypes.byref(failures),
                ctypes.byref(out),
            )
        return Verification._take(out)

    def dequantize(
        self,
        output: str | os.PathLike[str],
        dtype: str | None = None,
        *,
        progress: Union[bool, Progress, None] = None,
        log: Log | None = None,
        threads: int = 0,
    ) -> None:
        """Decodes every tensor into the safetensors file `output`, with the original names, shapes
        and metadata. Floats become `dtype` ("f32", "f16", "bf16"; None: what they were, but
        quantized f8 becomes bf16). Checks every checksum."""
        code = 0 if dtype is None else code_of(_FLOATS, dtype, "dtype")
        path = encode_path(output, "output")
        run = Run(progress, log, threads)
        options = ctypes.byref(run.options)
        run.call(lib.aq_model_dequantize, self._open(), path, code, options)

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        """The model as an Arrow table, one tile a row, with the columns of the file: for
        `pyarrow.table(model)`, polars, DuckDB and others. Planes are not copied, and last as long
        as the arrays."""
        stream = ArrowArrayStream()
        call(lib.aq_model_to_arrow, self._open(), ctypes.byref(stream))
        return _arrow.capsule_of(stream)

    def __repr__(self) -> str:
        if self.closed:
            return "<arrowquant.Model, closed>"
        return f"<arrowquant.Model of {len(self)} tensors>"


def open_model(file: Any) -> Model:
    """Opens a file that `quantize` wrote: a path, or its bytes in memory (anything with the buffer
    protocol), which are used where they lie and must not change."""
    return Model(file)

"""A quantized file, opened."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Union

from . import _arrow
from ._buffers import Memory, Output, array_of, numpy_or_none
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
from .kernels import Planes, Recipe, _FLOATS, shaped, vectors_of
from .report import Verification, number
from .source import Source, TensorInfo


@dataclass(frozen=True)
class Rotation:
    """How columns were rotated before they were quantized, see docs/format.md."""

    #: Columns that were rotated together.
    block: int
    #: What the signs follow from; 0 is none.
    seed: int


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
    """Some rows of a tensor, where they lie in the file.

    `codes`, `scales` and `biases` are read-only memoryviews of bytes, of shape [rows, bytes of a
    row] (of one dimension where they are empty, or rows are no whole bytes); None where the tensor
    has no such plane. They stay good as long as anything refers to them, whatever becomes of the
    model. `numpy()` gives them their types.
    """

    #: "int2", "int4", "int8"; "raw" for a tensor that was kept: codes are then its values.
    format: str
    #: Type of the elements in the source.
    dtype: str
    #: First row of the matrix in this tile.
    row_start: int
    #: Rows of the matrix in this tile.
    rows: int
    #: Weights in a row.
    cols: int
    codes: memoryview = field(repr=False)
    scales: memoryview | None = field(repr=False)
    biases: memoryview | None = field(repr=False)
    #: What decoding needs; None for a tensor that was kept.
    recipe: Recipe | None
    #: XXH3-64 of the tile, see docs/format.md.
    checksum: int
    #: As measured when the file was written; None when kept.
    cosine: float | None
    #: As measured when the file was written, in dB; infinite without error, None when kept.
    sqnr_db: float | None
    #: Scales and biases counted; None without weights.
    bits_per_weight: float | None
    #: What each column was multiplied by before it was quantized, as bytes of f16; or None. Weights
    #: that planes alone decode to are still to be divided by it, once they are rotated back.
    input_scale: memoryview | None = field(repr=False)
    #: How columns were rotated then, after that; or None.
    rotation: Rotation | None

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

    def numpy(self) -> Planes:
        """The planes as read-only numpy arrays, where they lie: codes uint8 [rows, bytes of a row],
        scales and biases float16 or float32 [rows, groups]."""
        if self.recipe is not None:
            return shaped(self)
        whole = self.rows and self.codes.nbytes % self.rows == 0
        shape = (self.rows, self.codes.nbytes // self.rows) if whole else (self.codes.nbytes,)
        return Planes(array_of(self.codes, "u1", shape), None, None)


def _tile(handle: Handle, index: int, number_: int) -> Tile:
    view = aq_tensor_view()
    call(lib.aq_model_view, handle, index, number_, ctypes.byref(view))

    def plane(address: int | None, length: int, stride: int) -> memoryview:
        bytes_ = borrow(address or 0, length, handle)
        return bytes_.cast("B", (view.rows, stride)) if stride and length else bytes_

    kept = view.format == FORMATS["raw"]
    affine = view.scheme == SCHEMES["affine"]
    recipe = None
    if not kept:
        recipe = Recipe(
            format=str(name_of(FORMATS, view.format)),
            group_size=view.group_size,
            scheme=str(name_of(SCHEMES, view.scheme)),
            scale_dtype=str(name_of(DTYPES, view.scale_dtype)),
        )
    return Tile(
        format=str(name_of(FORMATS, view.format)),
        dtype=str(name_of(DTYPES, view.dtype)),
        row_start=view.row_start,
        rows=view.rows,
        cols=view.cols,
        codes=plane(view.codes, view.codes_len, view.codes_stride),
        scales=None if kept else plane(view.scales, view.scales_len, view.scales_stride),
        biases=plane(view.biases, view.biases_len, view.biases_stride) if affine else None,
        recipe=recipe,
        checksum=view.checksum,
        cosine=number(view.cosine),
        sqnr_db=number(view.sqnr_db),
        bits_per_weight=number(view.bits_per_weight),
        input_scale=plane(view.input_scale, view.input_scale_len, 0) if view.input_scale else None,
        rotation=Rotation(view.rotation_block, view.rotation_seed) if view.rotation_block else None,
    )


class Tensor:
    """A tensor of a model. It stays usable after the model is closed."""

    def __init__(self, handle: Handle, index: int, info: TensorInfo) -> None:
        self._handle = handle
        self._index = index
        #: Name, shape, and dtype in the source.
        self.info = info

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Its rows, in order: most tensors have one tile. Nothing is copied, unless the file is
        compressed."""
        return tuple(_tile(self._handle, self._index, i) for i in range(self.info.tiles))

    def dequantize(self, dtype: str = "f32", rows: slice | None = None) -> Any:
        """Decodes it as "f32", "f16" or "bf16"; kept floats are converted.

        Returns a numpy array (bf16 as uint16, as numpy has no such type) of the tensor's shape,
        or, of some `rows` (a slice without a step) of its matrix, of [rows, cols]. Without numpy
        an `array.array` of f32, or bytes of f16 and bf16.
        """
        code = code_of(_FLOATS, dtype, "dtype")
        info = self.info
        start, stop, step = (rows or slice(None)).indices(info.rows)
        if step != 1:
            raise ArgumentError(f"rows: a step of {step} is not 1")
        count = max(stop - start, 0)
        output = Output(info.shape if rows is None else (count, info.cols), dtype)
        memory = output.memory
        call(
            lib.aq_model_dequantize_rows,
            self._handle,
            self._index,
            start if count else 0,
            count,
            code,
            memory,
            memory.nbytes,
        )
        return output.result()

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
        """What each column was multiplied by before it was quantized: a read-only numpy array of
        float16 (without numpy a memoryview of its bytes), or None where nothing was."""
        scale = _tile(self._handle, self._index, 0).input_scale
        if scale is None or numpy_or_none() is None:
            return scale
        return array_of(scale, "<f2", (self.info.cols,))

    @property
    def rotation(self) -> Rotation | None:
        """How columns were rotated then, after that; None where they were not."""
        return _tile(self._handle, self._index, 0).rotation

    def activation_params(self, timestep: int) -> ActivationParams:
        """The static parameters of its activations at a timestep; `TensorError` where the file has
        none for it."""
        params = aq_activation_params()
        name, out = encode(self.info.name, "name"), ctypes.byref(params)
        call(lib.aq_model_activation_params, self._handle, name, timestep, out)
        return ActivationParams(params.t_begin, params.t_end, params.scale, params.zero_point)

    def transform_activations(self, x: Any) -> Any:
        """What a vector of `cols` f32, or several, [batch, cols], must become to be multiplied with
        the quantized weights as they lie in the file: divided by the input scale, and rotated.
        `matvec` does so by itself. Returns what `matvec` does, of the shape of `x`."""
        vectors, batch, _ = vectors_of(x, self.info.rows, self.info.cols)
        output = Output(vectors.shape, "f32")
        memory = output.memory
        if vectors.nbytes:
            ctypes.memmove(memory.address, vectors.address, vectors.nbytes)
        count = vectors.nbytes // 4
        call(lib.aq_model_transform_activations, self._handle, self._index, memory, count, batch)
        return output.result()

    def __repr__(self) -> str:
        info = self.info
        return f"<arrowquant.Tensor {info.name!r} {info.dtype} {list(info.shape)}>"


class Metadata(Mapping[str, str]):
    """What the file's footer says, by key (docs/format.md)."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __getitem__(self, key: str) -> str:
        value = text_of(lib.aq_model_metadata, self._handle, encode(key, "key"))
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        key, value = ctypes.c_char_p(), ctypes.c_char_p()
        for index in range(len(self)):
            out = ctypes.byref(key), ctypes.byref(value)
            call(lib.aq_model_metadata_entry, self._handle, index, *out)
            yield (key.value or b"").decode()

    def __len__(self) -> int:
        return int(lib.aq_model_metadata_count(self._handle))


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

    # Of mappings these would compare what they hold.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def metadata(self) -> Metadata:
        """What the file's footer says, by key (docs/format.md): `arrowquant.config` and so on."""
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
        run.call(lib.aq_model_dequantize_to_path, self._open(), path, code, options)

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        """The model as an Arrow table, one tile a row, with the columns of the file: for
        `pyarrow.table(model)`, polars, DuckDB and others. Planes are not copied, and last as long
        as the arrays."""
        stream = ArrowArrayStream()
        call(lib.aq_model_export_arrow, self._open(), ctypes.byref(stream))
        return _arrow.capsule_of(stream)

    def __repr__(self) -> str:
        if self.closed:
            return "<arrowquant.Model, closed>"
        return f"<arrowquant.Model of {len(self)} tensors>"


def open_model(file: Any) -> Model:
    """Opens a file that `quantize` wrote: a path, or its bytes in memory (anything with the buffer
    protocol), which are used where they lie and must not change."""
    return Model(file)

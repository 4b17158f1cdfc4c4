"""Tensors to quantize."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _arrow
from ._buffers import ITEM_BYTES, Memory
from ._library import (
    DTYPES,
    Handle,
    Owner,
    aq_open_options,
    aq_tensor_info,
    call,
    code_of,
    encode,
    encode_path,
    lib,
    make,
    name_at,
    name_of,
)
from .errors import ArgumentError


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description."""

    name: str
    #: Type of its elements in the source: "f32", "bf16", "i64", ...
    dtype: str
    shape: tuple[int, ...]
    #: Rows of the matrix it is quantized as: all dimensions but the first fold into columns.
    rows: int
    cols: int
    #: Bytes of its values in the source.
    bytes: int
    #: Tiles it is stored in, each of some whole rows; 0 in a source.
    tiles: int

    @classmethod
    def read(cls, function: Any, handle: Handle, index: int) -> TensorInfo:
        """Asks the library."""
        info = aq_tensor_info()
        call(function, handle, index, ctypes.byref(info))
        return cls(
            name=name_at(info.name, info.name_len),
            dtype=str(name_of(DTYPES, info.dtype)),
            shape=tuple(info.dims[: info.dims_count]) if info.dims_count else (),
            rows=info.rows,
            cols=info.cols,
            bytes=info.bytes,
            tiles=info.tiles,
        )


class Source(Owner):
    """Tensors to quantize: from a file (`Source.open`), from memory (`from_tensors`, or
    `add_tensor` on an empty `Source()`), or from an Arrow table (`from_arrow`).

    Nothing is copied: a source keeps the arrays it was given, and they must not change before
    the last run from it.
    """

    def __init__(self) -> None:
        self._handle = make(lib.aq_source_free, lib.aq_source_new)

    @classmethod
    def _around(cls, handle: Handle) -> Source:
        source = cls.__new__(cls)
        source._handle = handle
        return source

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, without: Sequence[str] = ()) -> Source:
        """Opens what weights come in. Reads headers only.

        - A safetensors file, or a folder of shards with their index.
        - The folder of a diffusers pipeline, with its `model_index.json`: all its components,
          whose names come first in those of the tensors (`transformer.…`).
        - A GGUF file, any part of one that was split (`NAME-00001-of-00003.gguf`), or a folder with
          one of these. Tensors are f32, f16, bf16, or packed as Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K
          to Q6_K, IQ4_NL or IQ4_XS; packed ones are f32 here.
        - A Parquet file: a table as `from_arrow` takes it, with binary `data`, or a file of ours
          whose tensors were all kept.

        `without` names components of a pipeline to leave out, which may be missing.
        """
        name = encode_path(path, "path")
        if isinstance(without, str):
            raise TypeError("without must be a sequence of names, not a str")
        names = [encode(component, "without") for component in without]
        options = aq_open_options()
        options.without = (ctypes.c_char_p * len(names))(*names)
        options.without_count = len(names)
        return cls._around(
            make(lib.aq_source_free, lib.aq_source_open, name, ctypes.byref(options))
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> Source:
        """Arrays by name: anything with the buffer protocol, as `add_tensor` takes it, or a pair
        `(array, dtype)`."""
        source = cls()
        for name, data in tensors.items():
            dtype = None
            if isinstance(data, tuple):
                if len(data) != 2:
                    raise ArgumentError(f"tensor {name!r}: a tuple must be (array, dtype)")
                data, dtype = data
            source.add_tensor(name, data, dtype=dtype)
        return source

    @classmethod
    def from_arrow(cls, table: Any) -> Source:
        """The tensors of an Arrow table, one a row: columns `name`, `shape` (list of int64) and
        `data`, which is binary, with a column `dtype` ("f32", "bf16", ...), or a list of float or
        half float.

        `table` is anything with `__arrow_c_stream__`: tables and readers of pyarrow, polars,
        DuckDB and others. A reader is used up.
        """
        with _arrow.stream_of(table) as stream:
            return cls._around(make(lib.aq_source_free, lib.aq_source_from_arrow, stream))

    @classmethod
    def of(cls, input: Any) -> Source:
        """The source that `quantize` makes of its input; a Source is itself."""
        if isinstance(input, Source):
            return input
        if isinstance(input, (str, os.PathLike)):
            return cls.open(input)
        if isinstance(input, Mapping):
            return cls.from_tensors(input)
        if hasattr(input, "__arrow_c_stream__"):
            return cls.from_arrow(input)
        raise TypeError(
            "the input must be a path, a Source, a mapping of names to arrays, or an Arrow table, "
            f"not {type(input).__name__}"
        )

    def add_tensor(
        self,
        name: str,
        data: Any,
        *,
        dtype: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Adds a tensor: C-contiguous memory of anything with the buffer protocol.

        `dtype` and `shape` are the array's own unless given. bf16 is given as 16 bit numbers with
        `dtype="bf16"`, f8 as bytes (arrays of ml_dtypes say so themselves). Bytes need both.
        """
        memory = Memory(data, f"tensor {name!r}")
        kind = dtype or memory.dtype
        if kind is None:
            raise ArgumentError(
                f"tensor {name!r}: elements of buffer format {memory.view.format!r} are of no "
                "dtype known here: give one"
            )
        code = code_of(DTYPES, kind, f"tensor {name!r}: dtype")
        if shape is None:
            if memory.itemsize != ITEM_BYTES.get(kind):
                raise ArgumentError(
                    f"tensor {name!r}: elements of {memory.itemsize} bytes are no {kind}: give a shape"
                )
            shape = memory.shape
        if any(dim < 0 for dim in shape):
            raise ArgumentError(f"tensor {name!r}: shape {tuple(shape)} has a negative number")
        dims = (ctypes.c_size_t * len(shape))(*shape)
        with self._open().exclusive() as handle:
            call(
                lib.aq_source_add_tensor,
                handle,
                encode(name, "name"),
                code,
                dims,
                len(shape),
                memory,
                memory.nbytes,
            )
            handle.keep.append(memory)

    def __len__(self) -> int:
        with self._open().shared() as handle:
            return int(lib.aq_source_count(handle))

    def __iter__(self) -> Iterator[TensorInfo]:
        """Descriptions of all tensors."""
        return iter(self.tensors)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Descriptions of all tensors."""
        with self._open().shared() as handle:
            count = lib.aq_source_count(handle)
            return tuple(TensorInfo.read(lib.aq_source_tensor, handle, i) for i in range(count))

    def __repr__(self) -> str:
        if self.closed:
            return "<arrowquant.Source, closed>"
        return f"<arrowquant.Source of {len(self)} tensors>"

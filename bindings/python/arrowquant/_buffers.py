"""Memory of Python objects, by the buffer protocol, and numpy where it is installed."""

from __future__ import annotations

import array
import ctypes
import math
import re
from types import ModuleType
from typing import Any

from .errors import ArgumentError

# Bytes of an element, for telling shapes from bytes; other dtypes have no buffer of their own.
ITEM_BYTES = {
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f64": 8,
    "c64": 8,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u64": 8,
    "u32": 4,
    "u16": 2,
    "u8": 1,
    "bool": 1,
    "f8_e4m3": 1,
    "f8_e5m2": 1,
    "f8_e4m3fnuz": 1,
    "f8_e5m2fnuz": 1,
    "f8_e8m0": 1,
}

_FLOATS = {"e": "f16", "f": "f32", "d": "f64", "Zf": "c64", "?": "bool"}

# Names of the package ml_dtypes for types that numpy lacks.
_ML_DTYPES = {
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "float8_e4m3fnuz": "f8_e4m3fnuz",
    "float8_e5m2fnuz": "f8_e5m2fnuz",
    "float8_e8m0fnu": "f8_e8m0",
}


class _Buffer(ctypes.Structure):
    """Py_buffer, the same in all versions since 3.0."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


# Functions of our own, as the attributes of ctypes.pythonapi are everybody's.
_get_buffer = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int
)(("PyObject_GetBuffer", ctypes.pythonapi))
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.POINTER(_Buffer))(
    ("PyBuffer_Release", ctypes.pythonapi)
)


class Memory:
    """The memory of an object: `address` and `nbytes`, good while this lives."""

    def __init__(self, data: Any, what: str, writable: bool = False) -> None:
        kind = _ML_DTYPES.get(getattr(getattr(data, "dtype", None), "name", ""))
        self.dtype: str | None = kind
        if kind is not None:
            # numpy has no buffer for them.
            data = data.view(f"uint{8 * ITEM_BYTES[kind]}")
        try:
            view = memoryview(data)
        except (TypeError, ValueError, BufferError) as error:
            raise TypeError(
                f"{what} must have the buffer protocol, as numpy arrays, bytes and array.array do; "
                f"{type(data).__name__} does not ({error})"
            ) from error
        if not view.c_contiguous:
            raise ArgumentError(
                f"{what} is not C-contiguous: copy it, as numpy.ascontiguousarray does"
            )
        if writable and view.readonly:
            raise ArgumentError(f"{what} is read-only")
        # Keeps the object, and its memory where it is.
        self.view = view
        self.nbytes = view.nbytes
        self.shape: tuple[int, ...] = view.shape or ()
        self.itemsize = view.itemsize
        if self.dtype is None:
            self.dtype = _dtype_of(view.format, view.itemsize)
        raw = _Buffer()
        _get_buffer(view, ctypes.byref(raw), 0)
        self.address = raw.buf if self.nbytes else None
        _release_buffer(ctypes.byref(raw))

    @property
    def _as_parameter_(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.address)


def _dtype_of(format: str, itemsize: int) -> str | None:
    """The dtype of a buffer's elements by the `struct` module's letters, if it has one."""
    match = re.fullmatch(r"([@=<>!]?)(Zf|[?efdbBhHiIlLqQnN])", format)
    if not match:
        return None
    order, letter = match.groups()
    if order in (">", "!") and itemsize > 1:
        return None
    if letter in _FLOATS:
        return _FLOATS[letter]
    return f"{'i' if letter in 'bhilqn' else 'u'}{8 * itemsize}"


def numpy_or_none() -> ModuleType | None:
    """numpy, if it is installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def need_numpy() -> ModuleType:
    """numpy, or an error that says what to do."""
    numpy = numpy_or_none()
    if numpy is None:
        raise ImportError("this needs numpy: pip install numpy")
    return numpy


def ml_dtypes_or_none() -> ModuleType | None:
    """ml_dtypes, if it is installed: the package with numpy's missing types."""
    try:
        import ml_dtypes  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return None
    return ml_dtypes  # type: ignore[no-any-return, unused-ignore]


# numpy has no bf16: its bits stand for it.
NUMPY_DTYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "i8": "i1", "u8": "u1"}

# Type codes of `array.array`.
_ARRAY_TYPES = {"f32": "f", "i8": "b", "u8": "B"}


class Output:
    """New memory for numbers that the library writes: a numpy array (of bf16 as ml_dtypes.bfloat16
    where that package is installed, else as uint16), or without numpy an `array.array` of f32, i8 or
    u8, or bytes of f16 and bf16."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._numpy = numpy_or_none()
        self._type = _ARRAY_TYPES.get(dtype)
        self._bf16 = dtype == "bf16"
        self._data: Any
        if self._numpy is not None:
            self._data = self._numpy.empty(shape, NUMPY_DTYPES[dtype])
        else:
            data = bytearray(math.prod(shape) * ITEM_BYTES[dtype])
            self._data = array.array(self._type, data) if self._type else data
        self.memory = Memory(self._data, "output")

    def result(self) -> Any:
        """Returns what was written."""
        if self._numpy is None:
            return self._data if self._type else bytes(self._data)
        ml_dtypes = ml_dtypes_or_none() if self._bf16 else None
        return self._data if ml_dtypes is None else self._data.view(ml_dtypes.bfloat16)


def array_of(view: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
    """A numpy array over a view of bytes."""
    numpy = need_numpy()
    if len(view) == 0 or view.nbytes == 0:
        return numpy.empty(shape, dtype)
    return numpy.frombuffer(view, dtype).reshape(shape)

"""Arrow streams in capsules: the Arrow PyCapsule interface."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._library import ArrowArrayStream

NAME = b"arrow_array_stream"

# Functions of our own, as the attributes of ctypes.pythonapi are everybody's.
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# The same for a capsule that is being destroyed, to which no new reference may be made.
_last_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# Structs of capsules that live, by address.
_streams: dict[int, ArrowArrayStream] = {}


def _release(stream: ArrowArrayStream) -> None:
    if stream.release:
        release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(stream.release)
        release(ctypes.addressof(stream))


def _destroyed(
    capsule: int, streams: Any = _streams, pointer: Any = _last_pointer, release: Any = _release
) -> None:
    # Its needs are arguments: at the interpreter's end globals go one by one.
    stream = streams.pop(pointer(capsule, NAME), None)
    if stream is not None:
        release(stream)


# Capsules may outlive this module.
_destroy = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_destroyed)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_destroy))
_destructor = ctypes.cast(_destroy, ctypes.c_void_p)


def capsule_of(stream: ArrowArrayStream) -> Any:
    """A capsule that owns the stream, and releases it unless someone has taken it."""
    address = ctypes.addressof(stream)
    capsule = _new(address, NAME, _destructor)
    _streams[address] = stream
    return capsule


@contextmanager
def stream_of(table: Any) -> Iterator[ctypes.c_void_p]:
    """The stream of anything that has one, to be taken while the context lasts."""
    method = getattr(table, "__arrow_c_stream__", None)
    if method is None:
        raise TypeError(f"{type(table).__name__} has no __arrow_c_stream__: it is no Arrow table")
    # It releases the stream if nobody takes it.
    capsule = method()
    yield ctypes.c_void_p(_pointer(capsule, NAME))
    del capsule

"""The shared library: its structs and functions as include/arrowquant.h declares them, handles,
and calls whose errors become exceptions."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_size_t,
    c_ubyte,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any, Callable

from .errors import ArgumentError, of_status

# AQ_ABI_VERSION of the header that this file describes.
ABI_VERSION = 1

# Numbers of the header, by the names that settings and files use.
FORMATS = {"kept": 0, "int2": 2, "int4": 4, "int8": 8}
SCHEMES = {"symmetric": 1, "affine": 2}
METHODS = {"minmax": 1, "lsq": 2, "gptq": 3}
GAINS = {"auto": 0, "unit": 1, "lsq": 2}
DTYPES = {
    "f32": 1,
    "f16": 2,
    "bf16": 3,
    "f64": 4,
    "f8_e4m3": 5,
    "f8_e5m2": 6,
    "f8_e4m3fnuz": 7,
    "f8_e5m2fnuz": 8,
    "f8_e8m0": 9,
    "f6_e2m3": 10,
    "f6_e3m2": 11,
    "f4": 12,
    "c64": 13,
    "i64": 14,
    "i32": 15,
    "i16": 16,
    "i8": 17,
    "u64": 18,
    "u32": 19,
    "u16": 20,
    "u8": 21,
    "bool": 22,
}


def code_of(names: Mapping[str, int], name: str, what: str) -> int:
    """The header's number for a name."""
    if name not in names:
        raise ArgumentError(f"{what}: invalid value {name!r} (expected {', '.join(names)})")
    return names[name]


def name_of(names: Mapping[str, int], code: int) -> str | None:
    """The name for a number of the header; None for 0 where that names nothing."""
    for name, number in names.items():
        if number == code:
            return name
    return None if code == 0 else f"unknown {code}"


class Sized(Structure):
    """A struct that begins with its size."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.struct_size = ctypes.sizeof(self)


class aq_error(Sized):
    _fields_ = [("struct_size", c_uint32), ("code", c_int32), ("message", c_char * 512)]


class aq_recipe(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("format", c_int32),
        ("group_size", c_uint32),
        ("scheme", c_int32),
        ("scale_dtype", c_int32),
        ("method", c_int32),
        ("gain", c_int32),
    ]


class aq_matrix(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("format", c_int32),
        ("group_size", c_uint32),
        ("scheme", c_int32),
        ("scale_dtype", c_int32),
        ("dtype", c_int32),
        ("rows", c_size_t),
        ("cols", c_size_t),
        ("codes", c_void_p),
        ("codes_len", c_size_t),
        ("codes_stride", c_size_t),
        ("scales", c_void_p),
        ("scales_len", c_size_t),
        ("scales_stride", c_size_t),
        ("biases", c_void_p),
        ("biases_len", c_size_t),
        ("biases_stride", c_size_t),
        ("input_scale", c_void_p),
        ("input_scale_len", c_size_t),
        ("rotation_block", c_size_t),
        ("rotation_seed", c_uint64),
        ("reserved", c_uint64 * 4),
    ]


class aq_vectors(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("format", c_int32),
        ("group_size", c_uint32),
        ("cols", c_size_t),
        ("batch", c_size_t),
        ("transform", c_uint64),
        ("values", c_void_p),
        ("values_count", c_size_t),
        ("scales", c_void_p),
        ("scales_count", c_size_t),
        ("sums", c_void_p),
        ("sums_count", c_size_t),
    ]


class aq_planes(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("codes", c_void_p),
        ("codes_len", c_size_t),
        ("scales", c_void_p),
        ("scales_len", c_size_t),
        ("biases", c_void_p),
        ("biases_len", c_size_t),
    ]


class aq_activation_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("bits", c_uint32),
        ("group_size", c_uint32),
        ("scale", c_float),
        ("zero_point", c_float),
        ("input_scale", c_void_p),
        ("input_scale_count", c_size_t),
    ]


class aq_quality(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("cosine", c_double),
        ("sqnr_db", c_double),
        ("bits_per_weight", c_double),
    ]


class aq_tensor_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        # A pointer by number: the name may hold a NUL, where c_char_p would end.
        ("name", c_void_p),
        ("name_len", c_size_t),
        ("dims", POINTER(c_size_t)),
        ("dims_count", c_size_t),
        ("rows", c_size_t),
        ("cols", c_size_t),
        ("bytes", c_size_t),
        ("tiles", c_size_t),
    ]


class aq_calibration_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("timesteps", c_uint32),
        ("bins", c_uint32),
        ("no_hessian", c_uint32),
        ("hessian_groups", c_uint32),
        ("memory_limit", c_uint64),
        ("spill_folder", c_char_p),
    ]


class aq_layer_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("name", c_void_p),
        ("name_len", c_size_t),
        ("cols", c_size_t),
        ("rows", c_uint64),
    ]


class aq_tensor_plan(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("format", c_int32),
        ("group_size", c_uint32),
        ("scheme", c_int32),
        ("scale_dtype", c_int32),
        ("method", c_int32),
        ("gain", c_int32),
        ("name", c_void_p),
        ("name_len", c_size_t),
        ("reason", c_char_p),
        ("source_bytes", c_size_t),
        ("bytes", c_size_t),
        ("bits_per_weight", c_double),
        ("min_cosine", c_double),
    ]


class aq_tensor_report(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("format", c_int32),
        ("name", c_void_p),
        ("name_len", c_size_t),
        ("reason", c_char_p),
        ("bytes", c_size_t),
        ("bits_per_weight", c_double),
        ("cosine", c_double),
        ("sqnr_db", c_double),
        ("f32_scale_tiles", c_size_t),
        ("output_error", c_double),
        ("output_cosine", c_double),
        ("min_cosine", c_double),
        ("ladder_steps", c_size_t),
        ("below_min_cosine", c_uint32),
    ]


class aq_report_total(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("threads", c_uint32),
        ("quantized", c_size_t),
        ("kept", c_size_t),
        ("source_bytes", c_uint64),
        ("output_bytes", c_uint64),
        ("weights", c_uint64),
        ("bytes", c_uint64),
        ("bits_per_weight", c_double),
        ("cosine", c_double),
        ("sqnr_db", c_double),
        ("seconds", c_double),
    ]


class aq_progress(Sized):
    _fields_ = [("struct_size", c_uint32), ("done", c_uint64), ("total", c_uint64)]


class aq_open_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("without", POINTER(c_char_p)),
        ("without_count", c_size_t),
    ]


aq_progress_fn = CFUNCTYPE(c_bool, c_void_p, POINTER(aq_progress))
aq_log_fn = CFUNCTYPE(c_bool, c_void_p, c_int32, c_char_p)


class aq_run_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("threads", c_uint32),
        ("progress", aq_progress_fn),
        ("log", aq_log_fn),
        ("user_data", c_void_p),
        ("resume", c_uint32),
        ("part", c_uint32),
        ("parts", c_uint32),
        ("part_bytes", c_uint64),
        ("restart", c_uint32),
    ]


class aq_generation(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("generation", c_uint32),
        ("evaluations", c_uint64),
        ("best", c_double),
        ("mean", c_double),
        ("bytes", c_uint64),
    ]


aq_fitness_fn = CFUNCTYPE(c_double, c_void_p, c_void_p)
aq_generation_fn = CFUNCTYPE(c_bool, c_void_p, POINTER(aq_generation))


class aq_evolve_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("population", c_uint32),
        ("generations", c_uint32),
        ("parallel", c_uint32),
        ("resume", c_uint32),
        ("checkpoint", c_char_p),
        ("fitness", aq_fitness_fn),
        ("generation", aq_generation_fn),
        ("user_data", c_void_p),
    ]


class aq_fold_options(Sized):
    _fields_ = [("struct_size", c_uint32), ("dtype", c_int32), ("alpha", c_double)]


class aq_tensor_view(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("row_start", c_size_t),
        ("matrix", aq_matrix),
        ("checksum", c_uint64),
        ("cosine", c_double),
        ("sqnr_db", c_double),
        ("bits_per_weight", c_double),
    ]


class aq_activation_params(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("t_begin", c_int32),
        ("t_end", c_int32),
        ("scale", c_float),
        ("zero_point", c_float),
    ]


aq_release_fn = ctypes.CFUNCTYPE(None, c_void_p)

# Objects that the library uses, by number, until it releases them.
_lent: dict[int, Any] = {}
_numbers = itertools.count(1)


@aq_release_fn  # type: ignore[untyped-decorator, unused-ignore]
def let_go(number: int | None) -> None:
    """Releases what `lend` keeps: for functions that take an aq_release_fn, with the number from `lend`."""
    _lent.pop(number or 0, None)


def lend(thing: Any) -> int:
    """Keeps something until the library releases it."""
    number = next(_numbers)
    _lent[number] = thing
    return number


class ArrowArrayStream(Structure):
    _fields_ = [
        ("get_schema", c_void_p),
        ("get_next", c_void_p),
        ("get_last_error", c_void_p),
        ("release", c_void_p),
        ("private_data", c_void_p),
    ]


_HANDLE = c_void_p
_OUT = POINTER(c_void_p)
_TEXT = POINTER(c_char_p)
_SIZE = POINTER(c_size_t)
_RECIPE = POINTER(aq_recipe)
_MATRIX = POINTER(aq_matrix)
_VECTORS = POINTER(aq_vectors)
_PLANES = POINTER(aq_planes)
_OPTIONS = POINTER(aq_run_options)
_STREAM = POINTER(ArrowArrayStream)

# Functions that return a status, whose last parameter, an aq_error, is left out here.
FALLIBLE: dict[str, list[Any]] = {
    "aq_merge": [c_char_p],
    "aq_plane_sizes": [_RECIPE, c_size_t, c_size_t, _PLANES],
    "aq_quantize_rows": [_RECIPE, c_void_p, c_size_t, c_int32, c_size_t, c_size_t, c_void_p]
    + [_PLANES, _MATRIX, POINTER(aq_quality)],
    "aq_compare": [c_void_p, c_size_t, c_int32] * 2 + [POINTER(c_double)] * 2,
    "aq_matrix_rows": [_MATRIX, c_size_t, c_size_t, _MATRIX],
    "aq_dequantize_rows": [_MATRIX, c_int32, c_void_p, c_size_t],
    "aq_matvec": [_MATRIX, c_void_p, c_size_t, c_size_t, c_void_p, c_size_t],
    "aq_transform_vectors": [_MATRIX, c_void_p, c_size_t, c_size_t],
    "aq_quantize_vectors": [_MATRIX, c_void_p, c_size_t, c_size_t, _VECTORS],
    "aq_matvec_int8": [_MATRIX, _VECTORS, c_void_p, c_size_t],
    "aq_quantize_activations": [c_void_p, c_size_t, c_int32, c_size_t, c_size_t]
    + [POINTER(aq_activation_options), c_void_p, c_size_t, c_void_p, c_size_t],
    "aq_config_new": [c_char_p, _OUT],
    "aq_config_clone": [_HANDLE, _OUT],
    "aq_config_set": [_HANDLE, c_char_p, c_char_p],
    "aq_config_add_rule": [_HANDLE, c_char_p],
    "aq_config_get": [_HANDLE, c_char_p, _TEXT],
    "aq_config_merge_yaml": [_HANDLE, c_char_p],
    "aq_config_merge_yaml_file": [_HANDLE, c_char_p],
    "aq_config_merge_env": [_HANDLE],
    "aq_config_to_yaml": [_HANDLE, _TEXT],
    "aq_config_set_calibration": [_HANDLE, _HANDLE],
    "aq_calibration_new": [POINTER(aq_calibration_options), _OUT],
    "aq_calibration_load": [c_char_p, c_uint64, _OUT],
    "aq_calibration_save": [_HANDLE, c_char_p],
    "aq_calibration_merge": [_HANDLE, _HANDLE],
    "aq_calibration_set_schedule": [_HANDLE, POINTER(c_double), c_size_t],
    "aq_calibration_observe": [_HANDLE, c_char_p, c_uint32, c_void_p, c_size_t, c_int32]
    + [c_size_t] * 2,
    "aq_calibration_layer": [_HANDLE, c_size_t, POINTER(aq_layer_info)],
    "aq_source_open": [c_char_p, POINTER(aq_open_options), _OUT],
    "aq_source_new": [_OUT],
    "aq_source_add_tensor": [_HANDLE, c_char_p, c_int32, _SIZE, c_size_t, c_void_p, c_size_t],
    "aq_source_from_arrow": [c_void_p, _OUT],
    "aq_source_tensor": [_HANDLE, c_size_t, POINTER(aq_tensor_info)],
    "aq_plan_new": [_HANDLE, _HANDLE, _OPTIONS, _OUT],
    "aq_plan_file_bytes": [_HANDLE, _HANDLE, POINTER(c_uint64)],
    "aq_plan_tensor": [_HANDLE, c_size_t, POINTER(aq_tensor_plan)],
    "aq_plan_set": [_HANDLE, c_char_p, c_char_p],
    "aq_plan_to_json": [_HANDLE, _TEXT],
    "aq_plan_from_json": [c_char_p, _OUT],
    "aq_report_tensor": [_HANDLE, c_size_t, POINTER(aq_tensor_report)],
    "aq_report_totals": [_HANDLE, POINTER(aq_report_total)],
    "aq_report_to_json": [_HANDLE, _TEXT],
    "aq_report_to_html": [_HANDLE, _TEXT],
    "aq_quantize_file": [c_char_p, c_char_p, _HANDLE, _OPTIONS, _OUT],
    "aq_plan_run": [_HANDLE, _HANDLE, c_char_p, _OPTIONS, _OUT],
    "aq_plan_size_bound": [_HANDLE, _HANDLE, _SIZE],
    "aq_plan_run_into": [_HANDLE, _HANDLE, _OPTIONS, c_void_p, c_size_t, _SIZE, _OUT],
    "aq_analyze": [_HANDLE, _HANDLE, _OPTIONS, _OUT],
    "aq_analysis_to_json": [_HANDLE, _TEXT],
    "aq_evolve": [_HANDLE, _HANDLE, POINTER(aq_evolve_options), _OPTIONS, _OUT, _OUT],
    "aq_evolution_to_json": [_HANDLE, _TEXT],
    "aq_fold_file": [c_char_p, c_char_p, _HANDLE, POINTER(aq_fold_options), _OPTIONS, _OUT],
    "aq_fold_report_to_json": [_HANDLE, _TEXT],
    "aq_model_open": [c_char_p, _OUT],
    "aq_model_open_memory": [c_void_p, c_size_t, aq_release_fn, c_void_p, _OUT],
    "aq_model_tensor": [_HANDLE, c_size_t, POINTER(aq_tensor_info)],
    "aq_model_find": [_HANDLE, c_char_p, _SIZE],
    "aq_model_view": [_HANDLE, c_size_t, c_size_t, POINTER(aq_tensor_view)],
    "aq_model_dequantize_rows": [_HANDLE, c_size_t, c_size_t, c_size_t, c_int32]
    + [c_void_p, c_size_t],
    "aq_model_matvec": [_HANDLE, c_size_t, c_void_p, c_size_t, c_size_t, c_void_p, c_size_t],
    "aq_model_activation_params": [_HANDLE, c_size_t, c_int32, POINTER(aq_activation_params)],
    "aq_model_dequantize": [_HANDLE, c_char_p, c_int32, _OPTIONS],
    "aq_model_metadata": [_HANDLE, c_char_p, _TEXT],
    "aq_model_metadata_to_json": [_HANDLE, _TEXT],
    "aq_model_verify": [_HANDLE, _HANDLE, c_double, _OPTIONS, _SIZE, _OUT],
    "aq_verification_to_json": [_HANDLE, _TEXT],
    "aq_model_to_arrow": [_HANDLE, _STREAM],
}

# The others: what they return, and their parameters.
PLAIN: dict[str, tuple[Any, list[Any]]] = {
    "aq_version": (c_char_p, []),
    "aq_abi_version": (c_uint32, []),
    "aq_isa_name": (c_char_p, []),
    "aq_calibration_count": (c_size_t, [_HANDLE]),
    "aq_source_count": (c_size_t, [_HANDLE]),
    "aq_plan_count": (c_size_t, [_HANDLE]),
    "aq_analysis_free": (None, [_HANDLE]),
    "aq_evolution_free": (None, [_HANDLE]),
    "aq_report_count": (c_size_t, [_HANDLE]),
    "aq_model_count": (c_size_t, [_HANDLE]),
    "aq_config_free": (None, [_HANDLE]),
    "aq_calibration_free": (None, [_HANDLE]),
    "aq_source_free": (None, [_HANDLE]),
    "aq_plan_free": (None, [_HANDLE]),
    "aq_report_free": (None, [_HANDLE]),
    "aq_fold_report_free": (None, [_HANDLE]),
    "aq_model_free": (None, [_HANDLE]),
    "aq_verification_free": (None, [_HANDLE]),
}


def library_path() -> str:
    """Where the library is: as ARROWQUANT_LIBRARY says, or beside this file."""
    given = os.environ.get("ARROWQUANT_LIBRARY")
    if given:
        return given
    names = {"win32": "arrowquant.dll", "darwin": "libarrowquant.dylib"}
    return str(Path(__file__).resolve().parent / names.get(sys.platform, "libarrowquant.so"))


def _load() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(path)
        library.aq_abi_version.restype = c_uint32
        abi = library.aq_abi_version()
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"cannot load the ArrowQuant library {path}: {error}; install the package with pip, "
            "or name a library in the environment variable ARROWQUANT_LIBRARY"
        ) from error
    if abi != ABI_VERSION:
        raise ImportError(
            f"{path} has version {abi} of the binary interface; this package needs version {ABI_VERSION}"
        )
    try:
        for name, params in FALLIBLE.items():
            function = getattr(library, name)
            function.restype, function.argtypes = c_int32, [*params, POINTER(aq_error)]
        for name, (result, params) in PLAIN.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, params
    except AttributeError as error:
        raise ImportError(f"{path} is not the library of this package: {error}") from error
    return library


lib = _load()


def call(function: Any, *args: Any) -> None:
    """Calls a function that returns a status, with an error struct of the call's own."""
    error = aq_error()
    status = function(*args, ctypes.byref(error))
    if status != 0:
        raise of_status(status, error.message.decode("utf-8", "replace"))


def encode(text: str, what: str) -> bytes:
    """A string for the C API."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, not {type(text).__name__}")
    if "\0" in text:
        raise ArgumentError(f"{what} has a NUL in it: {text!r}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what} is no UTF-8: {text!r}") from error


def encode_path(path: str | os.PathLike[str], what: str) -> bytes:
    """A path for the C API, which takes UTF-8 on every system."""
    return encode(os.fsdecode(os.fspath(path)), what)


def text_of(function: Any, *args: Any) -> str | None:
    """Calls a function whose output is a string."""
    out = c_char_p()
    call(function, *args, ctypes.byref(out))
    return None if out.value is None else out.value.decode()


def name_at(address: int | None, length: int) -> str:
    """A string by address and length."""
    return ctypes.string_at(address, length).decode() if address and length else ""


class Handle:
    """A handle of the C API, freed once, when nothing uses this object any more.

    ctypes takes it for its pointer, and keeps it alive while the call lasts. At the interpreter's
    end what is left is not freed: something may still look at its memory, and the process ends
    anyway.

    Functions that take a handle without `const` need it for themselves: they run in `exclusive`,
    and functions whose strings such a call would change in `shared`.
    """

    def __init__(self, pointer: int | None, free: Any, keep: list[Any] | None = None) -> None:
        self._as_parameter_ = c_void_p(pointer)
        # Objects whose memory the handle uses.
        self.keep: list[Any] = [] if keep is None else keep
        self._users: list[int] = []
        self._changed = threading.Condition()
        finalizer = weakref.finalize(self, _free, free, pointer, self.keep)
        finalizer.atexit = False

    @contextmanager
    def shared(self) -> Iterator[Handle]:
        """While others may read it, too."""
        thread = threading.get_ident()
        with self._changed:
            self._users.append(thread)
        try:
            yield self
        finally:
            with self._changed:
                self._users.remove(thread)
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[Handle]:
        """While no other call uses it."""
        with self._changed:
            if threading.get_ident() in self._users:
                raise ArgumentError("a callback cannot change what its own call uses")
            while self._users:
                self._changed.wait()
            yield self


class Lent(Handle):
    """A handle of the library's own, which it lends for the time of a callback: neither changed nor
    freed here."""

    def __init__(self, pointer: int) -> None:
        super().__init__(pointer, lambda _: None)

    @contextmanager
    def exclusive(self) -> Iterator[Handle]:
        """Refused."""
        raise ArgumentError("a candidate cannot be changed, but Plan.from_json(plan.to_json()) can")
        yield self

    def take_back(self) -> None:
        """Makes it useless, once no thread uses it any more."""
        with super().exclusive():
            self._as_parameter_ = c_void_p(None)


def _free(free: Callable[[int | None], None], pointer: int | None, keep: list[Any]) -> None:
    free(pointer)
    # Only now.
    keep.clear()


def make(free: Any, function: Any, *args: Any, keep: list[Any] | None = None) -> Handle:
    """Calls a function whose output is a handle."""
    out = c_void_p()
    call(function, *args, ctypes.byref(out))
    return Handle(out.value, free, keep)


class Owner:
    """An object that holds a handle: a context manager, of no use after `close`."""

    _handle: Handle | None = None

    def _open(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise ArgumentError(f"the {type(self).__name__} is closed")
        return handle

    def close(self) -> None:
        """Gives up the handle; what was got from it stays usable."""
        self._handle = None

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._handle is None

    def __enter__(self) -> Any:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def borrow(address: int, length: int, owner: object) -> memoryview:
    """A read-only view of memory that lasts as long as `owner`, which it keeps alive."""
    if length == 0:
        return memoryview(b"")
    array = (c_ubyte * length).from_address(address)
    # Views of the array, and views of those, hold on to it.
    array.owner = owner  # type: ignore[attr-defined]
    return memoryview(array).cast("B").toreadonly()

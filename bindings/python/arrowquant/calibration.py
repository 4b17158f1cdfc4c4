"""Activation statistics of a model's layers, by timestep: collected from a runtime of any kind, or by hooks from
PyTorch."""

from __future__ import annotations

import ctypes
import fnmatch
import functools
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple, Optional, TypeVar, Union

from . import _unfold
from ._buffers import ITEM_BYTES, Memory
from ._library import (
    DTYPES,
    Handle,
    Owner,
    aq_calibration_options,
    aq_layer_info,
    call,
    encode,
    encode_path,
    lib,
    make,
    name_at,
)
from .errors import ArgumentError

# Which layers to look at: patterns of names as in the shell, or a function of name and module.
Layers = Union[str, Iterable[str], Callable[[str, Any], bool]]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_FLOATS = {name: DTYPES[name] for name in ("f32", "f16", "bf16")}

# PyTorch's names for them.
_TORCH = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}


class LayerInfo(NamedTuple):
    """Description of an observed layer."""

    #: Name of the layer, without ".weight".
    name: str
    #: Input channels.
    cols: int
    #: Rows observed, at all timesteps.
    rows: int


class Values:
    """The values of an array or a tensor: where they lie, while this lives, and what they are."""

    def __init__(self, x: Any, what: str, dtype: str | None = None) -> None:
        if hasattr(x, "data_ptr") and hasattr(x, "detach"):
            # A tensor of PyTorch, which may lie anywhere, and whose bf16 no buffer has.
            x = x.detach().cpu().contiguous()
            self.keep: Any = x
            self.address: int | None = x.data_ptr() or None
            self.nbytes = x.numel() * x.element_size()
            self.shape = tuple(int(n) for n in x.shape)
            found = _TORCH.get(str(x.dtype), str(x.dtype))
        else:
            memory = Memory(x, what)
            self.keep, self.address, self.nbytes = memory, memory.address, memory.nbytes
            self.shape = memory.shape
            found = dtype or memory.dtype or "unknown"
        if found not in _FLOATS:
            expected = ", ".join(_FLOATS)
            raise ArgumentError(f"{what}: invalid value {found!r} (expected {expected})")
        self.dtype = found
        count = self.nbytes // ITEM_BYTES[found]
        if math.prod(self.shape) != count or not self.shape:
            raise ArgumentError(f"{what}: {count} values of shape {self.shape} have no channels")


class Calibration(Owner):
    """Activation statistics of a model's layers: per layer and timestep the range and the squares of each input
    channel, a histogram, and Hessians, which `method="gptq"` needs.

        with arrowquant.Calibration(timesteps=1000) as cal:
            with cal.hook(model):                   # of PyTorch; or call cal.observe yourself
                for t in scheduler.timesteps:
                    with cal.at(t):
                        sample = step(model, sample, t)
            cal.save("model.calibration.parquet")
            arrowquant.quantize("model.safetensors", "model.parquet", calibration=cal)

    `timesteps` of the model run from 0 to one less. They are put into `bins` of equal width, and
    these into `hessian_groups` with a Hessian each (`hessian=False`: none). Of Hessians no more than
    `memory_limit` bytes are held in memory; those beyond lie in a temporary file in `spill_folder`
    (by default the system's folder for such).

    Layers are called as their weights are, with or without ".weight". Everything may be done by
    several threads at once.
    """

    #: When hooks and wrapped functions are called; set it in your loop, or see `at`.
    timestep: Optional[int] = None

    def __init__(
        self,
        timesteps: int = 1000,
        bins: int = 50,
        hessian: bool = True,
        hessian_groups: int = 10,
        memory_limit: int | None = None,
        spill_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        options = aq_calibration_options()
        options.timesteps = _number(timesteps, "timesteps")
        options.bins = _number(bins, "bins")
        options.no_hessian = not hessian
        options.hessian_groups = _number(hessian_groups, "hessian_groups")
        options.memory_limit = _limit(memory_limit)
        if spill_folder is not None:
            options.spill_folder = encode_path(spill_folder, "spill_folder")
        new = lib.aq_calibration_new
        self._handle = make(lib.aq_calibration_free, new, ctypes.byref(options))

    @classmethod
    def _around(cls, handle: Handle) -> Calibration:
        calibration = cls.__new__(cls)
        calibration._handle = handle
        return calibration

    @classmethod
    def load(cls, path: str | os.PathLike[str], memory_limit: int | None = None) -> Calibration:
        """Reads a file that `save` wrote, to use it or to go on observing."""
        name, limit = encode_path(path, "path"), _limit(memory_limit)
        return cls._around(make(lib.aq_calibration_free, lib.aq_calibration_load, name, limit))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to the Parquet file `path` (docs/calibration.md), which appears whole or
        not at all."""
        with self._open().shared() as handle:
            call(lib.aq_calibration_save, handle, encode_path(path, "path"))

    def merge(self, other: Calibration) -> None:
        """Takes in what another calibration of the same model has seen, which stays as it was.
        Both must divide time alike, and both or neither keep Hessians."""
        if not isinstance(other, Calibration):
            raise TypeError(f"other must be a Calibration, not {type(other).__name__}")
        with self._open().shared() as into, other._open().shared() as theirs:
            call(lib.aq_calibration_merge, into, theirs)

    def set_schedule(self, alphas: Any) -> None:
        """Says how much of the signal is left at each timestep: one number from 0 to 1 a timestep,
        the cumulative products of 1 - beta (`scheduler.alphas_cumprod` of diffusers). Needed only to
        weigh timesteps by their noise."""
        numbers = [float(alpha) for alpha in alphas]
        array = (ctypes.c_double * len(numbers))(*numbers)
        with self._open().shared() as handle:
            call(lib.aq_calibration_set_schedule, handle, array, len(numbers))

    def observe(self, layer: str, timestep: int, x: Any, *, dtype: str | None = None) -> None:
        """Takes in the input of a layer at a timestep.

        `x` is a tensor of PyTorch, or C-contiguous memory with the buffer protocol: f32, f16 or bf16
        (of the package ml_dtypes, or as 16 bit numbers with `dtype="bf16"`). Its last dimension are
        the layer's input channels, and all before it are rows: tokens, pixels, samples. The input of
        a convolution is unfolded first, which `hook` does.

        Raises ConfigError, and takes nothing in, where the timestep is out of range, the layer was
        seen with another number of channels, or a value is NaN, infinite or beyond 1e18.
        """
        name = encode(layer, "layer")
        self._take(name, timestep, Values(x, f"input of layer {layer!r}", dtype))

    def _take(self, name: bytes, timestep: int, x: Values) -> None:
        cols = x.shape[-1]
        rows = math.prod(x.shape[:-1])
        when = _time(timestep, f"layer {name.decode()!r}")
        with self._open().shared() as handle:
            address = ctypes.c_void_p(x.address)
            code = _FLOATS[x.dtype]
            call(lib.aq_calibration_observe, handle, name, when, address, x.nbytes, code, rows, cols)

    @property
    def layers(self) -> list[LayerInfo]:
        """The layers that were observed, by name."""
        with self._open().shared() as handle:
            layers = []
            for index in range(lib.aq_calibration_count(handle)):
                found = aq_layer_info()
                call(lib.aq_calibration_layer, handle, index, ctypes.byref(found))
                name = name_at(found.name, found.name_len)
                layers.append(LayerInfo(name, found.cols, found.rows))
            return layers

    @contextmanager
    def at(self, timestep: int) -> Iterator[Calibration]:
        """While the model runs at a timestep (a number, or a tensor of one)."""
        before = self.timestep
        self.timestep = _time(timestep, "at")
        try:
            yield self
        finally:
            self.timestep = before

    def _now(self, layer: str) -> int:
        if self.timestep is None:
            raise ArgumentError(
                f"layer {layer!r} is called at no timestep: set the calibration's `timestep`, or run "
                "the model in its `at(t)`"
            )
        return self.timestep

    def wrap(self, function: _Function, layer: str) -> _Function:
        """Wraps a function, so that its first argument is observed as the input of `layer` whenever it is
        called, at `timestep`."""
        encode(layer, "layer")

        @functools.wraps(function)
        def observed(x: Any, *args: Any, **kwargs: Any) -> Any:
            self.observe(layer, self._now(layer), x)
            return function(x, *args, **kwargs)

        return observed  # type: ignore[return-value]

    @contextmanager
    def hook(self, model: Any, layers: Layers | None = None, prefix: str = "") -> Iterator[Calibration]:
        """While a model of PyTorch runs: observes the inputs of its Linear and Conv2d layers, at
        `timestep`.

        `layers` are those to look at: a pattern such as "*.attn.*", several, or a function of name
        and module. `prefix` is put before the names, as in "transformer." for that component of a
        diffusers folder. Convolutions are unfolded, which takes numpy; of several groups they are an
        error.
        """
        hooks = []
        try:
            for name, module in model.named_modules():
                kind = _kind(module)
                if kind is None or not _wanted(layers, name, module):
                    continue
                layer = prefix + name
                if kind == "Conv2d":
                    _unfold.check(module, layer)
                watch = functools.partial(self._watch, layer, kind)
                hooks.append(module.register_forward_pre_hook(watch))
            if not hooks:
                what = "" if layers is None else f" that {layers!r} matches"
                raise ArgumentError(f"the model has no Linear or Conv2d layer{what}")
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, layer: str, kind: str, module: Any, inputs: tuple[Any, ...]) -> None:
        what = f"input of layer {layer!r}"
        if not inputs:
            raise ArgumentError(f"{what} is no positional argument, which hooks do not see")
        name, when = encode(layer, "layer"), self._now(layer)
        values = Values(inputs[0], what)
        if kind == "Linear":
            self._take(name, when, values)
            return
        for rows in _unfold.pieces(module, values, layer):
            self._take(name, when, Values(rows, what, values.dtype))

    def __repr__(self) -> str:
        if self.closed:
            return "<arrowquant.Calibration, closed>"
        return f"<arrowquant.Calibration of {len(self.layers)} layers>"


def _kind(module: Any) -> str | None:
    """Linear or Conv2d, by the names of its classes: PyTorch is not imported for it."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return next((kind for kind in ("Linear", "Conv2d") if kind in names), None)


def _wanted(layers: Layers | None, name: str, module: Any) -> bool:
    if layers is None:
        return True
    if callable(layers):
        return bool(layers(name, module))
    patterns = [layers] if isinstance(layers, str) else layers
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _number(number: int, what: str) -> int:
    """One that C does not take for the default, or cut."""
    if not 0 < number < 1 << 32:
        raise ArgumentError(f"{what}: {number} is no number of {what}")
    return number


def _limit(limit: int | None) -> int:
    if limit is None:
        return 0
    if not 0 <= limit < 1 << 64:
        raise ArgumentError(f"memory_limit: {limit} is no number of bytes")
    # In C 0 is no limit; where nothing at all may be held, 1 says so as well.
    return max(limit, 1)


def _time(timestep: int, what: str) -> int:
    when = int(timestep)
    if when != timestep or not 0 <= when < 1 << 32:
        raise ArgumentError(f"{what}: {timestep} is no timestep")
    return when

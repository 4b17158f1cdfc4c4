"""Activations to integers, for products that are computed elsewhere."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

from ._buffers import Memory, Output
from ._library import DTYPES, aq_activation_options, call, code_of, lib
from .errors import ArgumentError

_FLOATS = {name: DTYPES[name] for name in ("f32", "f16", "bf16")}


class QuantizedActivations(NamedTuple):
    """Quantized activations, as numpy arrays or, without numpy, `array.array`s."""

    #: One for each activation, in the same shape: int8 when dynamic, uint8 when static.
    values: Any
    #: f32 [..., groups]: of each group of each row. None when static.
    scales: Any


def quantize_activations(
    x: Any,
    bits: int = 8,
    group_size: int = 0,
    scale: float | None = None,
    zero_point: float | None = None,
    input_scale: Any = None,
    *,
    dtype: str | None = None,
) -> QuantizedActivations:
    """Quantizes the input of a layer, [..., cols] of f32, f16 or bf16 (16 bit numbers with
    `dtype="bf16"`), to 8 or 4 bits.

    Dynamically, unless there is a `scale`: with a the largest magnitude of a group of `group_size`
    values of a row (0: the whole row) and top = 127, or 7 for 4 bits, values are
    round(x * (top / a)) and stand for value * scale, where scale = a / top. A group without
    magnitudes above 1e-30 gets zeros, and the scale 0.

    Statically with `scale` and `zero_point` (0 unless given), as those of one timestep: values are
    clamp(round(x * (1 / scale) + zero_point), 0, 2**bits - 1), and stand for
    (value - zero_point) * scale.

    `input_scale` is what each column is divided by first. All of it is f32, and round is half to
    even. Raises TensorError, naming row and column, for a value that is NaN or infinite.
    """
    memory = Memory(x, "x")
    code = code_of(_FLOATS, dtype or memory.dtype or "unknown", "dtype of x")
    size = 4 if code == _FLOATS["f32"] else 2
    if not memory.shape or memory.itemsize != size:
        raise ArgumentError(f"x has shape {memory.shape} of {memory.itemsize} bytes each")
    rows, cols = math.prod(memory.shape[:-1]), memory.shape[-1]
    options = aq_activation_options()
    # Values that C takes for a default, or cannot hold.
    if bits not in (4, 8):
        raise ArgumentError(f"bits: {bits} is neither 4 nor 8")
    if not 0 <= group_size < 1 << 32:
        raise ArgumentError(f"group_size: {group_size} is no multiple of 16 up to 1024")
    options.bits, options.group_size = bits, group_size
    if scale is not None:
        if scale == 0:
            raise ArgumentError("scale is 0")
        options.scale, options.zero_point = scale, zero_point or 0.0
    elif zero_point is not None:
        raise ArgumentError("a zero_point needs a scale")
    divisors = None if input_scale is None else Memory(input_scale, "input_scale")
    if divisors is not None:
        if divisors.dtype != "f32":
            raise ArgumentError(f"input_scale must be f32, not {divisors.dtype}")
        options.input_scale = divisors.address
        options.input_scale_count = divisors.nbytes // 4
    groups = -(-cols // (group_size or max(cols, 1)))
    values = Output(memory.shape, "i8" if scale is None else "u8")
    scales = Output((*memory.shape[:-1], groups), "f32") if scale is None else None
    call(
        lib.aq_quantize_activations,
        memory,
        memory.nbytes,
        code,
        rows,
        cols,
        ctypes.byref(options),
        values.memory,
        values.memory.nbytes,
        scales and scales.memory,
        scales.memory.nbytes // 4 if scales else 0,
    )
    return QuantizedActivations(values.result(), scales and scales.result())

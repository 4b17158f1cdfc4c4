"""Inputs of convolutions as rows: for each output all inputs that make it, in the order of the
weight's (channel, kernel row, kernel column). Works on bits, so that any float is as good."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from ._buffers import need_numpy
from .errors import ArgumentError

# Bytes of rows that are made at once.
_PIECE = 32 << 20

# numpy's names for PyTorch's ways of padding.
_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def check(module: Any, layer: str) -> None:
    """Refuses a convolution that is not a product with one matrix."""
    if module.groups != 1:
        raise ArgumentError(
            f"layer {layer!r} is a convolution of {module.groups} groups, which have no inputs in "
            "common: leave it out by `layers`"
        )
    if module.padding_mode not in _PADDING:
        raise ArgumentError(f"layer {layer!r}: unknown padding_mode {module.padding_mode!r}")
    need_numpy()


def _pair(value: Any) -> tuple[int, int]:
    down, right = (value, value) if isinstance(value, int) else value
    return int(down), int(right)


def _padding(module: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> list[tuple[int, int]]:
    """What comes before and after, down and to the right."""
    if module.padding == "valid":
        return [(0, 0), (0, 0)]
    if module.padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(pad, pad) for pad in _pair(module.padding)]


def pieces(module: Any, values: Any, layer: str) -> Iterator[Any]:
    """The rows of an input of [batch, channels, height, width], some at a time, as bits."""
    numpy = need_numpy()
    shape = values.shape if len(values.shape) == 4 else (1, *values.shape)
    if len(shape) != 4 or shape[1] != module.in_channels:
        raise ArgumentError(
            f"input of layer {layer!r} of shape {values.shape} is not [batch, "
            f"{module.in_channels} channels, height, width]"
        )
    if not values.nbytes:
        return
    kernel, stride, dilation = map(_pair, (module.kernel_size, module.stride, module.dilation))
    around = [(0, 0), *_padding(module, kernel, dilation)]
    mode = _PADDING[module.padding_mode]
    size = values.nbytes // int(numpy.prod(shape))
    memory = (ctypes.c_ubyte * values.nbytes).from_address(values.address)
    # Zeros are zero bits in every float.
    samples = numpy.frombuffer(memory, f"<u{size}").reshape(shape)
    for sample in samples:
        padded = numpy.pad(sample, around, mode=mode)
        spans = tuple(step * (n - 1) + 1 for step, n in zip(dilation, kernel))
        if any(span > n for span, n in zip(spans, padded.shape[1:])):
            raise ArgumentError(f"input of layer {layer!r} is smaller than the kernel")
        windows = numpy.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
        windows = windows[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
        # By place of the output, then in the order of the weight's.
        windows = windows.transpose(1, 2, 0, 3, 4)
        height, width = windows.shape[:2]
        cols = shape[1] * kernel[0] * kernel[1]
        lines = max(1, _PIECE // max(width * cols * size, 1))
        for line in range(0, height, lines):
            yield numpy.ascontiguousarray(windows[line : line + lines]).reshape(-1, cols)

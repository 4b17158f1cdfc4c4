"""Smoothing folded into the weights of preceding layers."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import dataclass
from typing import Union

from ._library import (
    DTYPES,
    Handle,
    aq_fold_options,
    code_of,
    encode_path,
    lib,
    text_of,
)
from ._run import Log, Progress, Run
from .calibration import Calibration
from .errors import ConfigError

_FLOATS = {name: DTYPES[name] for name in ("f32", "f16", "bf16")}


@dataclass(frozen=True)
class Folded:
    """Layers whose inputs were scaled."""

    #: The module that their inputs come from, which divides them now.
    before: str
    #: The weights that read them, and multiply them now.
    layers: tuple[str, ...]
    #: Smallest of the scales that inputs are divided by.
    smallest_scale: float
    #: Largest of these scales.
    largest_scale: float


@dataclass(frozen=True)
class FoldReport:
    """Result of folding."""

    #: The exponent that scales were made with.
    alpha: float
    #: All sets of layers whose inputs were scaled.
    folded: tuple[Folded, ...]
    #: Modules of known layouts into which nothing could be folded, and why.
    not_folded: dict[str, str]


def fold(
    input: Union[str, os.PathLike[str]],
    output: Union[str, os.PathLike[str]],
    calibration: Union[Calibration, str, os.PathLike[str]],
    *,
    alpha: float = 0.5,
    dtype: Union[str, None] = None,
    progress: Union[bool, Progress, None] = None,
    log: Union[Log, None] = None,
    threads: int = 0,
) -> FoldReport:
    """Writes the safetensors file `output` with the tensors of a model, where the input channels of
    layers are divided by `absmax(X)^alpha / absmax(W)^(1-alpha)` in the norm, the adaLN or the layer
    that makes them, and multiplied in the layers' weights: in LLaMA-like, LLaDA's and DiT's blocks.

    Any runtime runs the result, which computes what the model did: but for rounding to the dtypes
    of its tensors, or, with `dtype="f32"`, to f32. The inputs of these layers are others then, so
    that a calibration of the new model is gathered by running it.

    `input` is a path that `quantize` takes; `progress`, `log` and `threads` are as there. Raises
    FileError where nothing can be folded, which says why.
    """
    if not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    options = aq_fold_options()
    if alpha < 0:
        raise ConfigError(f"alpha: {alpha} is negative")
    # In C 0 is the default, and a negative number is 0.
    options.alpha = float(alpha) or -1.0
    if dtype is not None:
        options.dtype = code_of(_FLOATS, dtype, "dtype")
    paths = encode_path(input, "input"), encode_path(output, "output")
    run = Run(progress, log, threads)
    report = ctypes.c_void_p()
    with calibration._open().shared() as handle:
        given = ctypes.byref(options), ctypes.byref(run.options)
        run.call(lib.aq_fold_file, *paths, handle, *given, ctypes.byref(report))
    text = text_of(lib.aq_fold_report_to_json, Handle(report.value, lib.aq_fold_report_free))
    found = json.loads(text or "{}")
    return FoldReport(
        alpha=float(alpha),
        folded=tuple(Folded(**{**one, "layers": tuple(one["layers"])}) for one in found["folded"]),
        not_folded={one["before"]: one["reason"] for one in found["not_folded"]},
    )

"""Losses of tensors by each format, measured before any work."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from ._library import Handle, lib, text_of
from ._run import Log, Progress, Run
from .config import Config, Settings
from .source import Source

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class FormatAnalysis:
    """Loss of a tensor by one format."""

    #: "int2", "int4", "int8", or "keep"; the next two are then None.
    format: str
    #: Weights that share a scale; 0 for a whole row.
    group_size: int | None
    #: "symmetric" or "affine".
    scheme: str | None
    #: Bytes of its planes.
    bytes: int
    #: Bits per weight.
    bits_per_weight: float
    #: Cosine of the angle to the original.
    cosine: float
    #: 1 - cosine^2: the relative squared error once the amplitude is right.
    error: float


@dataclass(frozen=True)
class TensorAnalysis:
    """Losses of a tensor by each format."""

    name: str
    shape: tuple[int, ...]
    #: Weights in all.
    weights: int
    #: Rows that were tried.
    sampled_rows: int
    #: Basis of the errors: "weights", "outputs" (with a calibration), or "gaussian" (of a list of
    #: tensors without weights).
    basis: str
    #: Why it is sensitive, or None.
    sensitive: str | None
    #: One entry per format.
    formats: tuple[FormatAnalysis, ...]


class Analysis:
    """Losses of each tensor that can be quantized by each format, measured on a sample of
    its rows: `tensors`, in the order of the source."""

    def __init__(self, json_text: str) -> None:
        found = json.loads(json_text)
        self.tensors: tuple[TensorAnalysis, ...] = tuple(map(_tensor, found["tensors"]))
        #: Seed of the sample.
        self.seed: int = found["seed"]
        #: Wall time in seconds.
        self.seconds: float = found["seconds"]
        self._json = json_text

    @property
    def sensitive(self) -> tuple[TensorAnalysis, ...]:
        """The tensors that are sensitive: below their `min_cosine` as the settings have them, or among
        those that lose most for each bit saved."""
        return tuple(tensor for tensor in self.tensors if tensor.sensitive is not None)

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[TensorAnalysis]:
        return iter(self.tensors)

    def __getitem__(self, index: int | str) -> TensorAnalysis:
        """By index, or by the tensor's name."""
        if not isinstance(index, str):
            return self.tensors[index]
        for tensor in self.tensors:
            if tensor.name == index:
                return tensor
        raise KeyError(index)

    def to_json(self) -> str:
        """Returns the analysis as JSON, as `arrowquant analyze --json` prints it."""
        return self._json

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON as Python objects."""
        return json.loads(self._json)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<arrowquant.Analysis of {len(self)} tensors, {len(self.sensitive)} sensitive>"


def _tensor(found: dict[str, Any]) -> TensorAnalysis:
    formats = tuple(FormatAnalysis(**one) for one in found["formats"])
    return TensorAnalysis(**{**found, "shape": tuple(found["shape"]), "formats": formats})


def analyze(
    input: Any,
    *,
    config: Union[Config, Mapping[str, Any], None] = None,
    progress: Union[bool, Progress, None] = None,
    log: Union[Log, None] = None,
    threads: int = 0,
    **settings: Unpack[Settings],
) -> Analysis:
    """Measures, on a sample of the rows of each tensor that can be quantized, what it loses by the
    formats that a budget would choose from (the setting `candidates`), and by that of the settings.
    With a `calibration` it is the loss of the layer's outputs.

    `input`, `config`, the settings, `progress`, `log` and `threads` are as for `quantize`."""
    wanted = Config.of(config, settings)
    run = Run(progress, log, threads)
    found = ctypes.c_void_p()
    with Source.of(input)._open().shared() as tensors, wanted._open().shared() as handle:
        try:
            out = ctypes.byref(found)
            run.call(lib.aq_analyze, tensors, handle, ctypes.byref(run.options), out)
        finally:
            analysis = Handle(found.value, lib.aq_analysis_free)
    return Analysis(text_of(lib.aq_analysis_to_json, analysis) or "")

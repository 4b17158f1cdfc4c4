"""Measurements of a run, and results of checking a file."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ._library import (
    FORMATS,
    Handle,
    aq_report_total,
    aq_tensor_report,
    call,
    lib,
    name_at,
    name_of,
    text_of,
)


def number(value: float) -> float | None:
    """Turns NaN, with which the C API says that there is nothing, into None."""
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class LadderStep:
    """An attempt that did not reach the cosine that its tensor was to have."""

    #: Format that was tried: "int2", "int4" or "int8".
    format: str
    #: Whether input channels were scaled or rotated.
    spatial: bool
    #: Measured cosine.
    cosine: float
    #: Subject of the cosine: "weight" or "output".
    measure: str
    #: Required cosine.
    min_cosine: float


@dataclass(frozen=True)
class TensorReport:
    """Measurements of one tensor."""

    name: str
    #: "int2", "int4", "int8", or "kept" for a tensor that was not quantized.
    format: str
    #: Why it was treated so, in a few words.
    reason: str
    #: Bytes of its planes.
    bytes: int
    #: Scales and biases counted; None without weights.
    bits_per_weight: float | None
    #: Cosine of the angle to the original; None when kept.
    cosine: float | None
    #: Signal to quantization noise in dB; infinite without error, None when kept.
    sqnr_db: float | None
    #: Tiles whose scales did not fit f16 and are f32.
    f32_scale_tiles: int
    #: Relative squared error of the layer's output on the calibration's inputs, and the cosine of
    #: the angle between the outputs; None where no calibration tells. `to_dict()` has them by time.
    output_error: float | None
    output_cosine: float | None
    #: Cosine that it was to reach: of its outputs where a calibration tells of them, else of its
    #: weights. None for none.
    min_cosine: float | None
    #: Attempts that did not reach it, in order.
    ladder: tuple[LadderStep, ...]
    #: Whether it still does not reach it, as the budget left no room for more bits.
    below_min_cosine: bool


@dataclass(frozen=True)
class Totals:
    """Figures over all quantized tensors of a run."""

    #: Threads that worked.
    threads: int
    #: Number of quantized tensors.
    quantized: int
    #: Number of kept tensors.
    kept: int
    #: Bytes of all tensors in the source.
    source_bytes: int
    #: Bytes of the file.
    output_bytes: int
    #: Quantized weights.
    weights: int
    #: Bytes of their planes.
    bytes: int
    #: Their bits per weight, scales and biases counted; None without any.
    bits_per_weight: float | None
    #: Cosine over all of them; None without any.
    cosine: float | None
    #: Signal to quantization noise over all of them in dB; infinite without error, None without
    #: any.
    sqnr_db: float | None
    #: Wall time.
    seconds: float


class Report:
    """Measurements of a run, on the weights as they decode from the file: `totals`, and one entry per
    tensor, in the order of the plan."""

    def __init__(
        self, totals: Totals, tensors: tuple[TensorReport, ...], json_text: str, html: str
    ) -> None:
        self.totals = totals
        self.tensors = tensors
        self._json = json_text
        self._html = html

    @classmethod
    def _take(cls, pointer: ctypes.c_void_p) -> Report:
        """Reads all of a handle, and frees it."""
        handle = Handle(pointer.value, lib.aq_report_free)
        found = aq_report_total()
        call(lib.aq_report_totals, handle, ctypes.byref(found))
        totals = Totals(
            threads=found.threads,
            quantized=found.quantized,
            kept=found.kept,
            source_bytes=found.source_bytes,
            output_bytes=found.output_bytes,
            weights=found.weights,
            bytes=found.bytes,
            bits_per_weight=number(found.bits_per_weight),
            cosine=number(found.cosine),
            sqnr_db=number(found.sqnr_db),
            seconds=found.seconds,
        )
        json_text = text_of(lib.aq_report_to_json, handle) or ""
        ladders: dict[str, tuple[LadderStep, ...]] = {}
        tensors = []
        for index in range(lib.aq_report_count(handle)):
            entry = aq_tensor_report()
            call(lib.aq_report_tensor, handle, index, ctypes.byref(entry))
            if entry.ladder_steps and not ladders:
                ladders = {
                    tensor["name"]: tuple(LadderStep(**step) for step in tensor["ladder"])
                    for tensor in json.loads(json_text)["tensors"]
                }
            name = name_at(entry.name, entry.name_len)
            tensors.append(
                TensorReport(
                    name=name,
                    format=str(name_of(FORMATS, entry.format)),
                    reason=entry.reason.decode(),
                    bytes=entry.bytes,
                    bits_per_weight=number(entry.bits_per_weight),
                    cosine=number(entry.cosine),
                    sqnr_db=number(entry.sqnr_db),
                    f32_scale_tiles=entry.f32_scale_tiles,
                    output_error=number(entry.output_error),
                    output_cosine=number(entry.output_cosine),
                    min_cosine=number(entry.min_cosine),
                    ladder=ladders.get(name, ()),
                    below_min_cosine=bool(entry.below_min_cosine),
                )
            )
        return cls(totals, tuple(tensors), json_text, text_of(lib.aq_report_to_html, handle) or "")

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[TensorReport]:
        return iter(self.tensors)

    def __getitem__(self, index: int | str) -> TensorReport:
        """By index, or by the tensor's name."""
        if not isinstance(index, str):
            return self.tensors[index]
        for tensor in self.tensors:
            if tensor.name == index:
                return tensor
        raise KeyError(index)

    def to_json(self) -> str:
        """Returns the report as JSON, as `arrowquant quantize --report` writes it."""
        return self._json

    def to_html(self) -> str:
        """Returns the report as a self-contained HTML page, as `arrowquant quantize --report out.html`
        writes it."""
        return self._html

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON as Python objects."""
        return json.loads(self._json)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        total = self.totals
        return (
            f"<arrowquant.Report: {total.quantized} tensors quantized, {total.kept} kept, "
            f"cosine {total.cosine}>"
        )


@dataclass(frozen=True)
class TensorCheck:
    """Result of checking one tensor."""

    name: str
    #: Description of the problem, or None.
    problem: str | None
    #: Measured against the original; None without one, and for kept tensors.
    cosine: float | None
    #: Measured against the original in dB; infinite without error, None where cosine is.
    sqnr_db: float | None


def _check(found: dict[str, Any]) -> TensorCheck:
    cosine, sqnr_db = found["cosine"], found["sqnr_db"]
    if cosine is not None and sqnr_db is None:
        sqnr_db = math.inf
    return TensorCheck(found["name"], found["problem"], cosine, sqnr_db)


class Verification:
    """Result of checking a file: one entry per tensor, those of the file first, then those that it
    lacks. True when nothing is wrong."""

    def __init__(self, tensors: tuple[TensorCheck, ...], json_text: str) -> None:
        self.tensors = tensors
        self._json = json_text

    @classmethod
    def _take(cls, pointer: ctypes.c_void_p) -> Verification:
        """Reads all of a handle, and frees it."""
        handle = Handle(pointer.value, lib.aq_verification_free)
        json_text = text_of(lib.aq_verification_to_json, handle) or ""
        return cls(tuple(map(_check, json.loads(json_text)["tensors"])), json_text)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures

    @property
    def failures(self) -> tuple[TensorCheck, ...]:
        """The tensors with a problem."""
        return tuple(tensor for tensor in self.tensors if tensor.problem is not None)

    def __bool__(self) -> bool:
        return self.ok

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[TensorCheck]:
        return iter(self.tensors)

    def to_json(self) -> str:
        """Returns the result as JSON, as `arrowquant verify --json` prints it."""
        return self._json

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON as Python objects."""
        return json.loads(self._json)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<arrowquant.Verification: {len(self.failures)} of {len(self)} tensors failed>"

"""Plans: what each tensor will get, before any work."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from ._buffers import Memory
from ._library import (
    DTYPES,
    FORMATS,
    GAINS,
    METHODS,
    SCHEMES,
    Handle,
    Owner,
    aq_tensor_plan,
    call,
    encode,
    encode_path,
    lib,
    make,
    name_at,
    name_of,
    text_of,
)
from ._run import Log, Progress, Run
from .config import Config, Settings
from .report import Report, number
from .source import Source

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class PlanEntry:
    """Plan of one tensor."""

    name: str
    #: "int2", "int4", "int8", or "kept" for a tensor that is not quantized; the next five are then None.
    format: str
    #: Weights that share a scale; 0 for a whole row.
    group_size: int | None
    #: "symmetric" or "affine".
    scheme: str | None
    #: "f16" or "f32"; "auto" is f16, and f32 for tiles that need it.
    scale_dtype: str | None
    #: "minmax", "lsq" or "gptq".
    method: str | None
    #: "unit" or "lsq".
    gain: str | None
    #: Why, in a few words.
    reason: str
    #: Bytes of its values in the source.
    source_bytes: int
    #: Predicted bytes of its planes.
    bytes: int
    #: Predicted bits per weight; None without weights.
    bits_per_weight: float | None
    #: Cosine that it must reach, or get more bits: of its outputs where a calibration tells of them,
    #: else of its weights. None for none.
    min_cosine: float | None


def _entry(found: aq_tensor_plan) -> PlanEntry:
    kept = found.format == FORMATS["kept"]
    return PlanEntry(
        name=name_at(found.name, found.name_len),
        format=str(name_of(FORMATS, found.format)),
        group_size=None if kept else found.group_size,
        scheme=name_of(SCHEMES, found.scheme),
        scale_dtype=None if kept else name_of(DTYPES, found.scale_dtype) or "auto",
        method=name_of(METHODS, found.method),
        gain=None if kept else name_of(GAINS, found.gain),
        reason=found.reason.decode(),
        source_bytes=found.source_bytes,
        bytes=found.bytes,
        bits_per_weight=number(found.bits_per_weight),
        min_cosine=number(found.min_cosine),
    )


class Plan(Owner):
    """A plan says what each tensor of a source will get: `create` it, look at its entries, change some with
    `set`, then `run` it. It holds on to no source."""

    def __init__(self) -> None:
        raise TypeError("a plan is made by Plan.create or Plan.from_json")

    @classmethod
    def _around(cls, handle: Handle) -> Plan:
        plan = cls.__new__(cls)
        plan._handle = handle
        return plan

    @classmethod
    def create(
        cls,
        source: Any,
        config: Union[Config, Mapping[str, Any], None] = None,
        *,
        progress: Union[bool, Progress, None] = None,
        log: Log | None = None,
        threads: int = 0,
        **settings: Unpack[Settings],
    ) -> Plan:
        """The plan for a source (or what `quantize` takes as its input). `settings` are config
        keys, over `config`.

        Where they set a budget (`max_size`, `avg_bits`, `mixed_precision`), what tensors lose by each
        format is measured on a sample of their rows: `progress`, `log` and `threads` are as for
        `quantize`. A budget that nothing fits is a ConfigError with the arithmetic."""
        wanted = Config.of(config, settings)
        run = Run(progress, log, threads)
        plan = ctypes.c_void_p()
        with Source.of(source)._open().shared() as tensors, wanted._open().shared() as handle:
            try:
                out = ctypes.byref(plan)
                run.call(lib.aq_plan_new, tensors, handle, ctypes.byref(run.options), out)
            finally:
                made = Handle(plan.value, lib.aq_plan_free)
        return cls._around(made)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads what `to_json` gave, edited or not."""
        return cls._around(
            make(lib.aq_plan_free, lib.aq_plan_from_json, encode(text, "the plan's JSON"))
        )

    def to_json(self) -> str:
        """Returns the plan as JSON, as `arrowquant plan --json` prints it."""
        with self._open().shared() as handle:
            return text_of(lib.aq_plan_to_json, handle) or ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON as Python objects."""
        return json.loads(self.to_json())  # type: ignore[no-any-return]

    def set(self, tensor: str, settings: str) -> None:
        """Changes what one tensor will get: "keep", or like "bits:8,group:64" with any of bits,
        group, scheme, method, gain, scale_dtype and min_cosine."""
        with self._open().exclusive() as handle:
            call(lib.aq_plan_set, handle, encode(tensor, "tensor"), encode(settings, "settings"))

    def __len__(self) -> int:
        with self._open().shared() as handle:
            return int(lib.aq_plan_count(handle))

    @property
    def entries(self) -> tuple[PlanEntry, ...]:
        """Plans of all tensors, in the order of the source."""
        with self._open().shared() as handle:
            entries = []
            for index in range(lib.aq_plan_count(handle)):
                found = aq_tensor_plan()
                call(lib.aq_plan_tensor, handle, index, ctypes.byref(found))
                entries.append(_entry(found))
            return tuple(entries)

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self.entries)

    def __getitem__(self, index: int | str) -> PlanEntry:
        """By index, or by the tensor's name."""
        entries = self.entries
        if not isinstance(index, str):
            return entries[index]
        for entry in entries:
            if entry.name == index:
                return entry
        raise KeyError(index)

    @property
    def modality(self) -> str:
        """Modality of the model: "text", "code", "image", "audio" or "unknown"."""
        return str(self.to_dict()["modality"])

    @property
    def families(self) -> tuple[str, ...]:
        """The families of models that it is of, whose lists of what to keep count."""
        return tuple(self.to_dict()["families"])

    @property
    def evidence(self) -> tuple[str, ...]:
        """Evidence for the modality, in sentences."""
        return tuple(self.to_dict()["evidence"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the plan, such as rules that match no tensor."""
        return tuple(self.to_dict()["warnings"])

    def run(
        self,
        source: Any,
        output: str | os.PathLike[str],
        *,
        progress: Union[bool, Progress, None] = None,
        log: Log | None = None,
        threads: int = 0,
        resume: bool = False,
        part: tuple[int, int] | None = None,
        part_bytes: int | None = None,
        restart: bool = False,
    ) -> Report:
        """Runs the plan: quantizes `source` into the Parquet file or folder `output`. `threads` are
        all of the machine's where 0. Other parameters as for `quantize`."""
        path = encode_path(output, "output")
        run = Run(
            progress,
            log,
            threads,
            resume=resume,
            part=part,
            part_bytes=part_bytes,
            restart=restart,
        )
        report = ctypes.c_void_p()
        with Source.of(source)._open().shared() as tensors, self._open().shared() as plan:
            out = ctypes.byref(report)
            run.call(lib.aq_plan_run, plan, tensors, path, ctypes.byref(run.options), out)
        return Report._take(report)

    def file_bytes(self, source: Any) -> int:
        """Predicted bytes of the file that it makes of its source: planes to the byte, and what is
        beside them to a few hundred bytes a tensor. Compression, scales that turn out to need f32
        and tensors that get more bits to reach their cosine change it."""
        size = ctypes.c_uint64()
        with Source.of(source)._open().shared() as tensors, self._open().shared() as plan:
            call(lib.aq_plan_file_bytes, plan, tensors, ctypes.byref(size))
        return size.value

    def size_bound(self, source: Any) -> int:
        """Returns an upper bound of the file's bytes."""
        size = ctypes.c_size_t()
        with Source.of(source)._open().shared() as tensors, self._open().shared() as plan:
            call(lib.aq_plan_size_bound, plan, tensors, ctypes.byref(size))
        return size.value

    def run_to_bytes(
        self,
        source: Any,
        *,
        progress: Union[bool, Progress, None] = None,
        log: Log | None = None,
        threads: int = 0,
    ) -> tuple[bytearray, Report]:
        """Runs the plan into memory. Returns the bytes of the file, which `arrowquant.open` opens without
        copying them, and the report."""
        source = Source.of(source)
        run = Run(progress, log, threads)
        report, written = ctypes.c_void_p(), ctypes.c_size_t()
        output = bytearray(self.size_bound(source))
        memory = Memory(output, "output")
        with source._open().shared() as tensors, self._open().shared() as plan:
            run.call(
                lib.aq_plan_run_into,
                plan,
                tensors,
                ctypes.byref(run.options),
                memory,
                memory.nbytes,
                ctypes.byref(written),
                ctypes.byref(report),
            )
        measured = Report._take(report)
        # While it is viewed, it cannot be cut.
        memory.view.release()
        del output[written.value :]
        return output, measured

    def __repr__(self) -> str:
        if self.closed:
            return "<arrowquant.Plan, closed>"
        return f"<arrowquant.Plan of {len(self)} tensors>"

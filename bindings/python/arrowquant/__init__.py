"""Quantizes diffusion-model weights to INT2, INT4 and INT8, and measures the result.

    import arrowquant

    report = arrowquant.quantize("in.safetensors", "out.parquet", bits=4, progress=True)
    with arrowquant.open("out.parquet") as model:
        weights = model["blocks.0.attn.qkv.weight"].dequantize()
"""

from __future__ import annotations

import ctypes as _ctypes
import os as _os
from collections.abc import Mapping as _Mapping
from typing import TYPE_CHECKING as _TYPE_CHECKING, Any as _Any, Union as _Union

from ._library import call as _call, encode_path as _encode_path, lib as _lib
from ._run import Log, Progress, Run as _Run
from . import kernels
from .analysis import Analysis, FormatAnalysis, TensorAnalysis, analyze
from .calibration import Calibration, LayerInfo
from .config import Config, Settings
from .errors import (
    ArgumentError,
    Cancelled,
    ChecksumError,
    ConfigError,
    Error,
    FileError,
    InternalError,
    IOFailure,
    MissingFile,
    PlanError,
    TensorError,
    UnknownKey,
    UnknownTensor,
)
from .evolution import Evolution, Fitness, Generation, OnGeneration, evolve
from .folding import Folded, FoldReport, fold
from .kernels import Matrix, Rotation
from .model import (
    ActivationParams,
    Metadata,
    Model,
    Tensor,
    Tile,
    open_model as open,
)
from .plan import Plan, PlanEntry
from .report import LadderStep, Report, TensorCheck, TensorReport, Totals, Verification
from .source import Source, TensorInfo

if _TYPE_CHECKING:
    from typing_extensions import Unpack

__version__: str = _lib.aq_version().decode()


def isa_name() -> str:
    """Returns the instruction set in use: the best of this machine, or a lesser one that
    the environment variable AQ_ISA asks for. "scalar", on x86-64 also "avx2", "avx512" or
    "avx512vnni", on AArch64 "neon" or "neon-dotprod"."""
    return str(_lib.aq_isa_name().decode())


def quantize(
    input: _Any,
    output: _Union[str, _os.PathLike[str]],
    *,
    config: _Union[Config, _Mapping[str, _Any], None] = None,
    progress: _Union[bool, Progress, None] = None,
    log: _Union[Log, None] = None,
    threads: int = 0,
    resume: bool = False,
    part: _Union[tuple[int, int], None] = None,
    part_bytes: _Union[int, None] = None,
    restart: bool = False,
    **settings: Unpack[Settings],
) -> Report:
    """Quantizes a model into the Parquet file `output`, which appears whole at its path, or not at
    all; or, where `output` does not end in .parquet, into a folder of parts with a manifest.json.

    `input` is the path of a safetensors file, a folder of shards, a diffusers folder, a GGUF or a
    Parquet file (`Source.open`), a `Source`, a mapping of names to arrays (anything with the
    buffer protocol), or an Arrow table (anything with `__arrow_c_stream__`).

    Settings are those of `Config`, over those of `config`: `bits=4`, `group_size=64`,
    `method="lsq"`, `calibration="model.calibration.parquet"` (or a `Calibration`), `keep=["lm_head.*"]`, `rules=["*.v_proj.weight=bits:8"]` and so on.

    `progress` is True for a bar on standard error, or a callable that receives bytes done and bytes
    in total, at least about 20 times a second. `log` is a callable that receives one-line notices and
    warnings, with a level of the `logging` module, such as `logging.getLogger("...").log`. If either
    returns False, the run ends with `Cancelled`; returning None continues. An exception in them ends
    the run, too, and is raised here. With a budget (`max_size`, `avg_bits`, `mixed_precision`)
    `progress` covers the measuring first, and then the run. `threads=0` means what the settings say,
    by default as many as the machine has.

    In a folder each part appears whole, and after an interruption the same run continues with the
    existing parts. `restart=True` starts anew and removes the parts of an earlier run, even one with
    other settings; `resume=True` is the default for folders, and refuses a single file. `part=(K, N)`
    does the K-th of N shares of the work, which `merge` makes into one model; a part ends when its
    planes exceed `part_bytes` (128 MiB). A folder belongs to one source and one set of settings;
    another run into it is refused.
    """
    wanted = Config.of(config, settings)
    if not isinstance(input, (str, _os.PathLike)):
        source = Source.of(input)
        threads = threads or int(wanted["num_threads"])
        plan = Plan.create(source, wanted, progress=progress, threads=threads)
        return plan.run(
            source,
            output,
            progress=progress,
            log=log,
            threads=threads,
            resume=resume,
            part=part,
            part_bytes=part_bytes,
            restart=restart,
        )
    paths = _encode_path(input, "input"), _encode_path(output, "output")
    run = _Run(
        progress,
        log,
        threads,
        resume=resume,
        part=part,
        part_bytes=part_bytes,
        restart=restart,
    )
    report = _ctypes.c_void_p()
    with wanted._open().shared() as handle:
        options, out = _ctypes.byref(run.options), _ctypes.byref(report)
        run.call(_lib.aq_quantize_file, *paths, handle, options, out)
    return Report._take(report)


def merge(folder: _Union[str, _os.PathLike[str]]) -> None:
    """Merges a folder of parts that several runs with `part` made into one model: checks that all parts
    exist and belong together, and writes the manifest."""
    _call(_lib.aq_merge, _encode_path(folder, "folder"))


def quantize_to_bytes(
    input: _Any,
    *,
    config: _Union[Config, _Mapping[str, _Any], None] = None,
    progress: _Union[bool, Progress, None] = None,
    log: _Union[Log, None] = None,
    threads: int = 0,
    **settings: Unpack[Settings],
) -> tuple[bytearray, Report]:
    """Quantizes a model into memory, as `quantize` does into a file. Returns the bytes of the file, which
    `open` opens without copying them, and the report."""
    wanted = Config.of(config, settings)
    source = Source.of(input)
    threads = threads or int(wanted["num_threads"])
    plan = Plan.create(source, wanted, progress=progress, threads=threads)
    return plan.run_to_bytes(source, progress=progress, log=log, threads=threads)


__all__ = [
    "ActivationParams",
    "Analysis",
    "ArgumentError",
    "Calibration",
    "Cancelled",
    "ChecksumError",
    "Config",
    "ConfigError",
    "Error",
    "Evolution",
    "FileError",
    "Fitness",
    "FoldReport",
    "Folded",
    "FormatAnalysis",
    "Generation",
    "IOFailure",
    "InternalError",
    "LadderStep",
    "LayerInfo",
    "Log",
    "Matrix",
    "Metadata",
    "MissingFile",
    "Model",
    "OnGeneration",
    "Plan",
    "PlanEntry",
    "PlanError",
    "Progress",
    "Report",
    "Rotation",
    "Settings",
    "Source",
    "Tensor",
    "TensorAnalysis",
    "TensorCheck",
    "TensorError",
    "TensorInfo",
    "TensorReport",
    "Tile",
    "Totals",
    "UnknownKey",
    "UnknownTensor",
    "Verification",
    "analyze",
    "evolve",
    "fold",
    "isa_name",
    "kernels",
    "merge",
    "open",
    "quantize",
    "quantize_to_bytes",
]

"""`python -m arrowquant`: the commands of the program `arrowquant`, in brief, without charts.

Exit codes: 0 done, 1 the work failed or a check did not hold, 2 wrong usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import arrowquant
from arrowquant import Config, ConfigError, Error, Plan, Source
from arrowquant._run import NOTICE

# Flag and key of every setting.
SETTINGS = {
    "--profile": ("deployment_profile", "defaults for the target machine: edge, local or cloud"),
    "--bits": ("bit_width", "bits per weight: 2, 4 or 8"),
    "--group-size": ("group_size", "weights per scale: a multiple of 16 up to 1024, or 0 for the whole row"),
    "--scheme": ("scheme", "symmetric or affine"),
    "--method": ("method", "how scales are chosen: minmax, lsq, or gptq, which requires a calibration"),
    "--calibration": ("calibration", "a calibration file"),
    "--time-aware": ("enable_time_aware", "whether timesteps are distinguished: true or false"),
    "--time-groups": ("num_time_groups", "number of timestep groups"),
    "--time-weighting": ("time_weighting", "how timestep groups are weighted: auto, rows, equal, snr, relative, or numbers"),
    "--spatial": ("enable_spatial", "whether smoothing and rotation are tried: true or false"),
    "--modality": ("modality", "what the model generates: text, code, image, audio, unknown, or auto (detected)"),
    "--gain": ("gain", "whether amplitude is restored: unit (yes), lsq (no) or auto"),
    "--scale-dtype": ("scale_dtype", "how scales are stored: auto, f16 or f32"),
    "--on-nonfinite": ("on_nonfinite", "what to do with tensors that contain NaN or infinity: error or keep"),
    "--packed": ("packed", "what to do with weights packed by another quantizer: error or keep"),
    "--compression": ("compression", "none or zstd"),
    "--streaming": ("streaming_mode", "keep memory use low, even if that takes longer"),
    "--memory-limit": ("memory_limit", "memory limit for the whole program, such as 256MB"),
    "--fail-fast": ("fail_fast", "stop with an error in situations that a run normally handles"),
    "--min-cosine": ("min_cosine", "cosine that every tensor must reach, or none"),
    "--mixed": ("mixed_precision", "choose the format of each tensor by its loss; the budgets imply it"),
    "--max-size": ("max_size", "maximum size of the file, such as 2GB"),
    "--avg-bits": ("avg_bits", "average bits per weight, including scales"),
    "--candidates": ("candidates", "formats to choose from, such as int2:256,int4:128:affine,int8,keep"),
    "--seed": ("seed", "seed for sampling rows and for the plans that a search tries"),
    "--threads": ("num_threads", "threads; 0 means all threads of the machine"),
}


class _Rule(argparse.Action):
    """--keep and --rule make one list, in their order."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        rules = getattr(namespace, self.dest) or []
        rule = f"{values}=keep" if option == "--keep" else values
        setattr(namespace, self.dest, [*rules, rule])


def _number_of_threads(text: str) -> int:
    config = Config()
    config.set("num_threads", text)
    return int(config["num_threads"])


def _share(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part), int(parts)


def _cosine(text: str) -> float:
    value = float(text)
    if not -1 <= value <= 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m arrowquant",
        description="Quantizes diffusion-model weights to INT2, INT4 or INT8.",
    )
    parser.add_argument("--version", action="version", version=arrowquant.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False)

    def add_json(to: argparse.ArgumentParser) -> None:
        to.add_argument("--json", action="store_true", help="as JSON")

    def add_settings(to: argparse.ArgumentParser) -> None:
        to.add_argument("--config", metavar="FILE", help="settings in YAML")
        for flag, (key, help) in SETTINGS.items():
            if flag in ("--streaming", "--fail-fast", "--mixed"):
                to.add_argument(flag, dest=key, help=help, action="store_const", const="true")
            else:
                to.add_argument(flag, dest=key, help=help)
        to.add_argument("--keep", action=_Rule, dest="rules", metavar="PATTERN", default=[])
        to.add_argument(
            "--rule", action=_Rule, dest="rules", metavar="PATTERN=bits:8,group:64",
            help="treat tensors whose name matches otherwise; later rules win",
        )

    def add_threads(to: argparse.ArgumentParser) -> None:
        to.add_argument("--threads", type=_number_of_threads, default=0, help="0 is all")

    def add_without(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--without", metavar="COMPONENT", action="append", default=[],
            help="leave a component out of a pipeline; may be given several times",
        )

    quantize = command("quantize", "quantize safetensors, a diffusers folder, GGUF or Parquet")
    quantize.add_argument("input")
    quantize.add_argument("output", help="the file to write, ending in .parquet, or a folder")
    add_without(quantize)
    again = quantize.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="resume with the parts in the folder (the default)")
    again.add_argument("--restart", action="store_true", help="make all parts of a folder anew")
    quantize.add_argument(
        "--part", type=_share, metavar="K/N", help="do the K-th of N shares into a folder"
    )
    add_settings(quantize)
    quantize.add_argument("--plan", metavar="FILE", help="do this plan, which `plan --json` printed")
    quantize.add_argument(
        "--report",
        metavar="FILE",
        action="append",
        default=[],
        help="write what was measured: a page where FILE ends in .html, else JSON; may be given twice",
    )
    quantize.add_argument("--quiet", action="store_true", help="print nothing but errors")

    plan = command("plan", "show what each tensor would get, before any work")
    plan.add_argument("input")
    add_without(plan)
    add_settings(plan)
    add_json(plan)

    analyze = command("analyze", "measure what each tensor would lose by each format, on a sample")
    analyze.add_argument("input")
    add_without(analyze)
    add_settings(analyze)
    add_json(analyze)

    evolve = command("evolve", "search for the plan that is worth most, within a budget")
    evolve.add_argument("input")
    add_without(evolve)
    evolve.add_argument("output", help="the plan to write, which `quantize --plan` takes")
    add_settings(evolve)
    evolve.add_argument(
        "--fitness", metavar="COMMAND",
        help="what a plan is worth: the last number that this prints, run by the shell with {} "
        "standing for the plan's file; by default less the errors of tensors",
    )
    evolve.add_argument("--population", type=int, default=50, metavar="N", help="plans a generation")
    evolve.add_argument(
        "--generations", type=int, default=10, metavar="N", help="those after the first"
    )
    evolve.add_argument(
        "--checkpoint", metavar="FILE", help="write the search down after each generation"
    )
    evolve.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    add_json(evolve)

    inspect = command("inspect", "show the tensors of a quantized file")
    inspect.add_argument("file")
    add_json(inspect)

    verify = command("verify", "check a quantized file's checksums, and its error")
    verify.add_argument("file")
    verify.add_argument("--against", metavar="ORIGINAL", help="the model it was made from")
    add_without(verify)
    verify.add_argument(
        "--min-cosine", type=_cosine, metavar="X", help="fail tensors whose cosine is below this"
    )
    add_threads(verify)
    add_json(verify)

    merge = command("merge", "make one model of a folder of parts that several runs made")
    merge.add_argument("folder")

    dequantize = command("dequantize", "decode a quantized file to safetensors")
    dequantize.add_argument("file")
    dequantize.add_argument("output", help="the safetensors file to write")
    dequantize.add_argument("--dtype", choices=("f32", "f16", "bf16"), help="default: as they were")
    add_threads(dequantize)
    return parser


def _config(args: argparse.Namespace) -> Config:
    """The settings, later ones over earlier: profile, YAML, environment, flags."""
    config = Config()
    if args.config is not None:
        config.merge_yaml_file(args.config)
    config.merge_env()
    for flag, (key, _) in SETTINGS.items():
        value = getattr(args, key)
        if value is not None:
            try:
                config.set(key, value)
            except ConfigError as error:
                raise ConfigError(f"{flag}{str(error)[len(key):]}") from None
    config.set("rules", args.rules)
    return config


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _printable(text: str) -> str:
    """Text on one line: names in a file may hold any character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None or value == float("inf") else f"{value:.{digits}f}"


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; those of figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    words = ("tensor", "dtype", "format", "how", "cosine of", "sensitive")
    for row in rows:
        cells = [
            cell.ljust(width) if head in words else cell.rjust(width)
            for head, cell, width in zip(rows[0], row, widths)
        ]
        print("  ".join(cells).rstrip())


def _log(level: int, message: str) -> None:
    if level >= logging.WARNING:
        print(f"warning: {_printable(message)}", file=sys.stderr)
    elif level == NOTICE:
        print(_printable(message), file=sys.stderr)


def _quantize(args: argparse.Namespace) -> int:
    if args.plan is not None:
        clash = [flag for flag, (key, _) in SETTINGS.items() if getattr(args, key) is not None]
        clash = [flag for flag in clash if flag != "--threads"]
        clash += ["--config"] if args.config else []
        clash += ["--keep or --rule"] if args.rules else []
        if clash:
            raise ConfigError(f"--plan cannot be used with {', '.join(clash)}")
    config = _config(args)
    source = Source.open(args.input, without=args.without)
    if args.plan is None:
        plan = _create(source, config, args.quiet)
    else:
        plan = Plan.from_json(Path(args.plan).read_text(encoding="utf-8"))
    # Before the work, so that hours are not lost to a mistyped name.
    _check_reports(args)
    try:
        report = plan.run(
            source,
            args.output,
            progress=not args.quiet and sys.stderr.isatty(),
            log=None if args.quiet else _log,
            threads=int(config["num_threads"]),
            resume=args.resume,
            restart=args.restart,
            part=args.part,
        )
    except KeyboardInterrupt:
        # Callbacks hear nothing more.
        if not args.output.endswith(".parquet") and not args.quiet:
            count = len(list(Path(args.output).glob("part-*.parquet")))
            are = "part is" if count == 1 else "parts are"
            there = f"{count} {are} there: the next run continues with them"
            nothing = "no part is complete yet: the next run starts over"
            print(there if count else nothing, file=sys.stderr)
        raise
    for path in map(Path, args.report):
        if path.suffix.lower() in (".html", ".htm"):
            text = report.to_html()
        else:
            text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
        path.write_bytes(text.encode())
    if not args.quiet:
        total = report.totals
        print(
            f"{args.output}: {total.output_bytes} of {total.source_bytes} bytes, "
            f"{total.seconds:.2f} s\n"
            f"{total.quantized} tensors quantized to {_figure(total.bits_per_weight, 3)} bits per "
            f"weight, cosine {_figure(total.cosine, 5)}, SQNR {_figure(total.sqnr_db, 2)} dB; "
            f"{total.kept} kept"
        )
        climbed = [tensor for tensor in report if tensor.ladder]
        if climbed:
            print(f"ladder: {len(climbed)} tensors got more than planned to reach min_cosine")
        below = [tensor for tensor in report if tensor.below_min_cosine]
        if below:
            print(f"ladder: {len(below)} tensors left below min_cosine for lack of room")
    return 0


def _check_reports(args: argparse.Namespace) -> None:
    """Refuses reports over other files of the run."""
    taken = {Path(args.output).resolve(): "is the output"}
    for report in args.report:
        path = Path(report)
        if path.resolve() in taken:
            raise ConfigError(f"--report: '{report}' {taken[path.resolve()]}")
        taken[path.resolve()] = "is given twice"
        if path.exists() and os.path.samefile(report, args.input):
            raise ConfigError(f"--report: '{report}' is the input")
        if not path.parent.is_dir():
            raise ConfigError(f"--report: there is no folder {path.parent}")


def _create(source: Source, config: Config, quiet: bool) -> Plan:
    """The plan, with a bar where there is something to measure."""
    return Plan.create(source, config, progress=not quiet and sys.stderr.isatty())


def _plan(args: argparse.Namespace) -> int:
    source = Source.open(args.input, without=args.without)
    plan = _create(source, _config(args), False)
    for warning in plan.warnings:
        _log(logging.WARNING, warning)
    if args.json:
        _json(json.loads(plan.to_json()))
        return 0
    rows = [("tensor", "format", "group", "bits/weight", "bytes", "how")]
    for entry in plan:
        how = f"{entry.scheme} {entry.method}, gain {entry.gain}; " if entry.method else ""
        rows.append(
            (
                _printable(entry.name),
                "keep" if entry.format == "kept" else entry.format,
                "-" if entry.group_size is None else str(entry.group_size),
                _figure(entry.bits_per_weight, 3),
                str(entry.bytes),
                _printable(how + entry.reason),
            )
        )
    _table(rows)
    for line in plan.evidence:
        # What was made of the source's tensors says so itself.
        own = line.startswith("source: ")
        print(_printable(line if own else f"modality: {line}"))
    print(f"a file of {plan.file_bytes(source)} bytes")
    return 0


def _analyze(args: argparse.Namespace) -> int:
    config = _config(args)
    source = Source.open(args.input, without=args.without)
    found = arrowquant.analyze(source, config=config, progress=sys.stderr.isatty())
    if args.json:
        _json(found.to_dict())
        return 0
    shown = _shown(found)
    rows = [("tensor", "shape", "rows", "cosine of", *map(_format_name, shown), "sensitive")]
    for tensor in found:
        cosines = {_format_name(format): format.cosine for format in tensor.formats}
        rows.append(
            (
                _printable(tensor.name),
                "x".join(map(str, tensor.shape)),
                str(tensor.sampled_rows),
                tensor.basis,
                *(_figure(cosines.get(_format_name(format)), 5) for format in shown),
                tensor.sensitive or "",
            )
        )
    _table(rows)
    count = len(found.sensitive)
    print(f"{len(found)} tensors in {found.seconds:.2f} s, {count} sensitive")
    return 0


def _shown(found: arrowquant.Analysis) -> list[arrowquant.FormatAnalysis]:
    """The formats in the table: of each width one, if there is that in symmetric groups of 128."""
    shown: dict[str, arrowquant.FormatAnalysis] = {}

    def rank(format: arrowquant.FormatAnalysis) -> tuple[bool, bool]:
        return format.group_size == 128, format.scheme == "symmetric"

    for format in (format for tensor in found for format in tensor.formats):
        if format.format == "keep":
            continue
        if format.format not in shown or rank(format) > rank(shown[format.format]):
            shown[format.format] = format
    return list(shown.values())


def _format_name(format: arrowquant.FormatAnalysis) -> str:
    group = " row" if format.group_size == 0 else f" g{format.group_size}"
    affine = " affine" if format.scheme == "affine" else ""
    return format.format if format.group_size is None else f"{format.format}{group}{affine}"


def _evolve(args: argparse.Namespace) -> int:
    config = _config(args)
    if args.resume and args.checkpoint is None:
        raise ConfigError("--resume needs --checkpoint")
    output = Path(args.output)
    # Before the work, so that hours are not lost to a mistyped name.
    if output.exists() and os.path.samefile(output, args.input):
        raise ConfigError(f"'{args.output}' is the input")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent}")
    found = arrowquant.evolve(
        Source.open(args.input, without=args.without),
        None if args.fitness is None else lambda plan: _worth(args.fitness, plan),
        population=args.population,
        generations=args.generations,
        checkpoint=args.checkpoint,
        resume=args.resume,
        config=config,
        progress=sys.stderr.isatty(),
        log=_log,
    )
    for warning in found.plan.warnings:
        _log(logging.WARNING, warning)
    plan = json.dumps(json.loads(found.plan.to_json()), indent=2, ensure_ascii=False)
    output.write_bytes((plan + "\n").encode())
    if args.json:
        _json(found.to_dict())
        return 0
    rows = [("generation", "best", "mean of parents", "bytes", "tried")]
    for one in found.history:
        figures = _figure(one.best, 6), _figure(one.mean, 6)
        rows.append((str(one.generation), *figures, str(one.bytes), str(one.evaluations)))
    _table(rows)
    start = "" if found.start is None else f", from {found.start:.6f} of the budget's plan"
    print(f"fitness {found.fitness:.6f}{start}")
    if found.additive:
        print("errors of tensors add up, so the budget's plan is the best of all already")
    if found.stopped:
        print("ended early, with the best so far")
    return 0


def _worth(command: str, plan: Plan) -> float:
    """The last number that a command prints for a plan."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        file.write_text(plan.to_json(), encoding="utf-8")
        text = command.replace("{}", shlex.quote(str(file)) if os.name == "posix" else str(file))
        done = subprocess.run(text, shell=True, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise ConfigError(f"--fitness: '{command}' failed: exit status {done.returncode}")
    for word in reversed(done.stdout.decode("utf-8", "replace").split()):
        try:
            return float(word)
        except ValueError:
            pass
    raise ConfigError(f"--fitness: '{command}' printed no number")


def _inspect(args: argparse.Namespace) -> int:
    with arrowquant.open(args.file) as model:
        found = _inspection(model, os.path.getsize(args.file))
    if args.json:
        _json(found)
        return 0
    rows = [("tensor", "dtype", "format", "shape", "group", "bits/weight", "cosine", "SQNR dB")]
    for tensor in found["tensors"]:
        rows.append(
            (
                _printable(tensor["name"]),
                tensor["dtype"],
                tensor["format"],
                "x".join(map(str, tensor["shape"])) or "scalar",
                "-" if tensor["group_size"] is None else str(tensor["group_size"]),
                _figure(tensor["bits_per_weight"], 3),
                _figure(tensor["cosine"], 5),
                _figure(tensor["sqnr_db"], 2),
            )
        )
    _table(rows)
    print(f"{_printable(str(found['modality']))} model")
    print(f"{len(found['tensors'])} tensors, {found['file_bytes']} bytes in the file")
    return 0


def _inspection(model: arrowquant.Model, file_bytes: int) -> dict[str, Any]:
    """Returns what `arrowquant inspect --json` prints."""

    def metadata(name: str) -> Any:
        text = model.metadata.get(f"arrowquant.{name}", "")
        try:
            return json.loads(text)
        except ValueError:
            return text

    summary = metadata("summary")
    source_bytes = sum(tensor.info.bytes for tensor in model.values())
    tensors = []
    for tensor in model.values():
        info, tiles = tensor.info, tensor.tiles
        planes = [p for tile in tiles for p in (tile.codes, tile.scales, tile.biases) if p is not None]
        size = sum(plane.nbytes for plane in planes)
        weights = info.rows * info.cols
        scale_dtypes: list[str] = []
        for tile in tiles:
            if tile.scale_dtype is not None and scale_dtypes[-1:] != [tile.scale_dtype]:
                scale_dtypes.append(tile.scale_dtype)
        measured = summary["tensors"][info.name] if summary else {}
        tensors.append(
            {
                "name": info.name,
                "shape": info.shape,
                "dtype": info.dtype,
                # The name in files.
                "format": tiles[0].format,
                "scheme": tiles[0].scheme,
                "group_size": tiles[0].group_size,
                "scale_dtypes": scale_dtypes,
                "tiles": len(tiles),
                "bytes": size,
                "bits_per_weight": 8 * size / weights if weights else None,
                "cosine": measured.get("cosine"),
                "sqnr_db": measured.get("sqnr_db"),
            }
        )
    return {
        "file_bytes": file_bytes,
        "source_bytes": source_bytes,
        "compression_ratio": source_bytes / file_bytes,
        "modality": metadata("modality"),
        "config": metadata("config"),
        "source": metadata("source"),
        "generator": metadata("generator"),
        "total": summary["total"] if summary else None,
        "tensors": tensors,
    }


def _verify(args: argparse.Namespace) -> int:
    if args.min_cosine is not None and args.against is None:
        raise ConfigError("--min-cosine needs --against")
    if args.without and args.against is None:
        raise ConfigError("--without needs --against")
    original = args.against and Source.open(args.against, without=args.without)
    with arrowquant.open(args.file) as model:
        found = model.verify(
            original,
            args.min_cosine,
            threads=args.threads,
            progress=sys.stderr.isatty(),
        )
    if args.json:
        _json(found.to_dict())
        return 0 if found else 1
    if args.against is not None:
        measured = [check for check in found if check.cosine is not None]
        rows = [("tensor", "cosine", "SQNR dB")]
        rows += [
            (_printable(check.name), _figure(check.cosine, 5), _figure(check.sqnr_db, 2))
            for check in measured
        ]
        _table(rows)
    for check in found.failures:
        print(f"FAILED {_printable(check.name)}: {_printable(check.problem or '')}")
    failed = len(found.failures)
    print(f"{failed} of {len(found)} tensors failed" if failed else f"{len(found)} tensors verified")
    return 0 if found else 1


def _merge(args: argparse.Namespace) -> int:
    arrowquant.merge(args.folder)
    return 0


def _dequantize(args: argparse.Namespace) -> int:
    with arrowquant.open(args.file) as model:
        progress = sys.stderr.isatty()
        model.dequantize(args.output, args.dtype, threads=args.threads, progress=progress)
    return 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """The first Ctrl-C, or other way to be told to end, raises KeyboardInterrupt, which stops a run;
    the second ends the program at once."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before: dict[int, Any] = {}

    def stop(*_: Any) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    # Signals are the main thread's. What we were started to ignore, as by nohup, stays ignored.
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does one command; returns its exit code."""
    args = _parser().parse_args(arguments)
    # What is no terminal gets an encoding from Windows that lacks letters which names may have.
    if sys.platform == "win32" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    commands = {
        "quantize": _quantize,
        "plan": _plan,
        "analyze": _analyze,
        "evolve": _evolve,
        "inspect": _inspect,
        "verify": _verify,
        "merge": _merge,
        "dequantize": _dequantize,
    }
    try:
        with _stoppable():
            try:
                return commands[args.command](args)
            except KeyboardInterrupt:
                doing = {
                    "quantize": "quantizing",
                    "plan": "planning for",
                    "analyze": "analyzing",
                    "evolve": "searching a plan for",
                    "verify": "verifying",
                    "dequantize": "decoding",
                }
                path = next(getattr(args, name) for name in ("input", "file", "folder") if name in args)
                what = f"{doing.get(args.command, args.command)} {path}"
                print(f"stopped: {_printable(what)}", file=sys.stderr)
                return 130
    except BrokenPipeError:
        # A reader that stops reading is no failure; what is left must not be flushed to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Error, OSError) as error:
        message = " ".join(line.strip() for line in str(error).splitlines())
        print(f"error: {_printable(message)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main())

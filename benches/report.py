"""Tables of results, as text and as docs/benchmarks.md: the same results, the same page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from measure import Row
from sections import fit_serial
from targets import against, rows_of, targets


@dataclass(frozen=True)
class Table:
    """One table of a section."""

    section: str
    title: str
    headers: list[str]
    rows: list[list[str]]
    note: str = ""

    def text(self) -> str:
        """Formats the table for a terminal: words to the left, figures to the right."""
        lines = [self.headers, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines)]
        words = [not any(cell[:1].isdigit() for cell in column) for column in zip(*self.rows)]
        words[0] = True

        def line(cells: list[str]) -> str:
            padded = (
                cell.ljust(width) if word else cell.rjust(width)
                for cell, width, word in zip(cells, widths, words)
            )
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * width for width in widths)
        note = [self.note, ""] if self.note else []
        return "\n".join([self.title, "", *note, line(self.headers), rule, *map(line, self.rows)])

    def markdown(self) -> str:
        """For docs/."""
        lines = [f"### {self.title}", ""]
        lines += [self.note, ""] if self.note else []
        lines += ["| " + " | ".join(self.headers) + " |", "|" + "---|" * len(self.headers)]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in self.rows])


def seconds(row: Row) -> list[str]:
    """Best and median."""
    return [f"{row['seconds'][which]:.3f} s" for which in ("min", "median")]


def times(ratio: float | None) -> str:
    """A speed-up."""
    return "" if ratio is None else f"{ratio:.2f}x"


def megabytes(row: Row) -> str:
    """Peak memory."""
    return f"{row['peak_bytes']['max'] / 1e6:.0f} MB"


def int_(row: Row) -> str:
    """The format name for a number of bits."""
    return f"int{row['what']['bits']}"


def named(row: Row) -> str:
    """Program and method."""
    what = row["what"]
    return what["program"] if "yardstick" in row else f"{what['program']}, {what['method']}"


def grouped(rows: list[Row], key: str) -> dict[Any, list[Row]]:
    """Groups rows by one of the things they measured."""
    series: dict[Any, list[Row]] = {}
    for row in rows:
        series.setdefault(row["what"][key], []).append(row)
    return series


def programs(results: dict[str, Any]) -> list[Table]:
    """Times and throughput of all programs."""
    rows = rows_of(results, "speed", "programs")
    ratios = {
        program: {id(row): ratio for row, ratio in against(rows, "seconds", program)}
        for program in ("numpy", "numpy tuned")
    }
    body = [
        [
            row["what"]["size"],
            int_(row),
            named(row),
            *seconds(row),
            str(len(row["seconds"]["runs"])),
            f"{row['weights'] / row['seconds']['min'] / 1e6:.0f} M/s",
            times(ratios["numpy"].get(id(row))),
            times(ratios["numpy tuned"].get(id(row))),
        ]
        for row in rows
    ]
    headers = ["model", "bits", "program", "best", "median", "runs", "weights", "numpy", "numpy tuned"]
    note = (
        "Whole processes, from a safetensors file to a file on disk. The last columns are the speed relative to "
        "numpy: a straightforward implementation, and a cache-tuned one. On 7B numpy and torch "
        "run once."
    )
    return [Table("speed", "Programs", headers, body, note)]


def against_cp(results: dict[str, Any]) -> list[Table]:
    """Times relative to the time of a copy."""
    rows = rows_of(results, "speed", "against_cp")
    if not rows:
        return []
    copy = rows[0]["seconds"]

    def share(row: Row) -> list[str]:
        return [f"{row['seconds'][which] / copy[which]:.2f}" for which in ("min", "median")]

    body = [[row["what"]["program"], *seconds(row), *share(row)] for row in rows]
    note = (
        f"The {rows[0]['what']['size']} bf16 model in the page cache, int4, all cores, until the output "
        f"is on the same disk; {len(copy['runs'])} runs each, in turns."
    )
    headers = ["program", "best", "median", "best / cp", "median / cp"]
    return [Table("speed", "File to file", headers, body, note)]


def steps(results: dict[str, Any]) -> list[Table]:
    """Speed-up of each step, relative to the first and to the previous one."""
    body = []
    rows = rows_of(results, "speed", "steps")
    for series in grouped(rows, "bits").values():
        for row, before in zip(series, series[:1] + series):
            faster = (other["seconds"]["min"] / row["seconds"]["min"] for other in (before, series[0]))
            body.append([int_(row), row["what"]["step"], *seconds(row), *map(times, faster)])
    note = f"minmax on the {rows[0]['what']['size']} model, whole processes." if rows else ""
    headers = ["bits", "step", "best", "median", "step before", "first step"]
    return [Table("speed", "Step by step", headers, body, note)]


def threads(results: dict[str, Any]) -> list[Table]:
    """Speed-up and efficiency."""
    body, note = [], ""
    series = grouped(rows_of(results, "parallel", "threads"), "method")
    for method, rows in series.items():
        one = rows[0]["seconds"]["min"]
        for row in rows:
            count, speedup = row["what"]["threads"], one / row["seconds"]["min"]
            efficiency = f"{100 * speedup / count:.0f} %"
            body.append([method, str(count), *seconds(row), times(speedup), efficiency])
        if len(rows) > 1:
            counts = [row["what"]["threads"] for row in rows]
            serial = fit_serial(counts, [row["seconds"]["min"] for row in rows])
            note += f" {method} {100 * serial:.0f} %,"
    if series:
        size = next(iter(series.values()))[0]["what"]["size"]
        fitted = f" Serial fraction, fitted by Amdahl's law:{note[:-1]}." if note else ""
        note = f"int4 on the {size} model, files and fsync included.{fitted}"
    headers = ["method", "threads", "best", "median", "speed-up", "efficiency"]
    return [Table("parallel", "Threads", headers, body, note)]


def ratios(section: str, title: str, note: str = "") -> Callable[[dict[str, Any]], list[Table]]:
    """A table of the Rust benchmark's results."""

    def table(results: dict[str, Any]) -> list[Table]:
        body = [
            [
                row["what"]["operation"],
                row["what"]["size"],
                row["what"]["isa"],
                str(row["what"]["threads"]),
                f"{row['gb_per_s']:.2f} GB/s",
                f"{row['weights_per_s'] / 1e6:.0f} M/s",
                times(row["scalar_ratio"]),
                f"{row['ratio']:.2f}",
                row["what"]["reference"],
            ]
            for row in rows_of(results, section, "ratios")
        ]
        headers = ["operation", "size", "isa", "threads", "bytes", "weights", "scalar", "ratio", "to"]
        return [Table(section, title, headers, body, note)]

    return table


def memory(results: dict[str, Any]) -> list[Table]:
    """Peak memory, relative to numpy's."""
    rows = rows_of(results, "memory", "programs")
    shares = {id(row): 1 / ratio for row, ratio in against(rows, "peak_bytes", "numpy")}
    body = []
    for row in rows:
        share = f"{shares[id(row)]:.2f}" if id(row) in shares else ""
        body.append([row["what"]["size"], int_(row), named(row), megabytes(row), share])
    note = "Peak resident memory of the whole process, including the interpreter and numpy."
    return [Table("memory", "Peak memory", ["model", "bits", "program", "peak", "of numpy's"], body, note)]


def streaming(results: dict[str, Any]) -> list[Table]:
    """Streaming compared with a normal run."""
    body = [
        [row["what"]["mode"], *seconds(row), megabytes(row)]
        for row in rows_of(results, "memory", "streaming")
    ]
    note = "int4 minmax, 100 layers of 1024x4096 (10 when quick)."
    return [Table("memory", "Streaming", ["mode", "best", "median", "peak"], body, note)]


def ceilings(results: dict[str, Any]) -> list[Table]:
    """Peak memory under a ceiling."""
    body = [
        [
            row["what"]["size"],
            f"{row['source_bytes'] / 1e6:.0f} MB",
            row["what"]["mode"],
            *seconds(row),
            megabytes(row),
        ]
        for row in rows_of(results, "memory", "ceilings")
    ]
    note = "int4, default method. Streaming has a ceiling of 256 MiB, which is 268 MB."
    heads = ["model", "source", "mode", "best", "median", "peak"]
    return [Table("memory", "Under a ceiling", heads, body, note)]


def in_memory(results: dict[str, Any]) -> list[Table]:
    """numpy without files."""
    body = [
        [int_(row), row["what"]["program"], f"{row['weights_per_s'] / 1e6:.0f} M/s"]
        for row in rows_of(results, "parallel", "in_memory")
    ]
    note = "minmax from memory to memory, one process: the yardstick for the kernels on all cores."
    return [Table("parallel", "numpy in memory", ["bits", "program", "weights"], body, note)]


TABLES = (
    programs,
    against_cp,
    steps,
    ratios("simd", "Kernels"),
    threads,
    ratios("parallel", "Kernels on several threads", "memcpy shows what the memory allows."),
    in_memory,
    memory,
    streaming,
    ceilings,
)
HEADINGS = {
    "speed": "Speed",
    "simd": "Instruction sets",
    "parallel": "Threads",
    "memory": "Memory",
}
CHARTS = {
    "speed": {
        "time": "Time by model and bits",
        "speedup": "Speed-up against numpy",
        "throughput": "Throughput",
    },
    "simd": {"simd": "Speed-up over scalar kernels"},
    "parallel": {"threads": "Thread scaling"},
    "memory": {"memory": "Peak memory"},
}


def tables(results: dict[str, Any]) -> list[Table]:
    """Returns all tables that have rows."""
    return [table for make in TABLES for table in make(results) if table.rows]


def closing(results: dict[str, Any]) -> Table:
    """Targets."""
    body = [[target.text, target.figure, target.verdict] for target in targets(results)]
    return Table("", "Targets", ["target", "measured", "result"], body)


def machine(results: dict[str, Any]) -> list[str]:
    """The machine, the date and the versions."""
    about = results["machine"]
    return [
        f"{about['cpu']}, {about['cores']} cores, {about['memory_bytes'] / 2**30:.0f} GiB, {about['isa']}",
        f"{about['system']}, {about['rustc']}, Python {about['python']}, numpy {about['numpy']}",
        f"arrowquant {results['version']} at {results['commit']}, {results['date']}",
    ]


def text(results: dict[str, Any]) -> str:
    """Formats results.txt."""
    parts = ["\n".join([results["command"], *machine(results)])]
    for section in results["sections"]:
        parts += [table.text() for table in tables(results) if table.section == section]
    return "\n\n\n".join([*parts, closing(results).text()]) + "\n"


def markdown(results: dict[str, Any], charts: list[str], folder: str) -> str:
    """Formats docs/benchmarks.md; `charts` are in `folder`, which ends in a slash or is empty."""
    parts = [
        "# Benchmarks",
        f"`{results['command']}` wrote this page; [benches](../benches/README.md) explains what is measured.",
        "\n".join(f"- {line}" for line in machine(results)),
        closing(results).markdown().replace("### ", "## "),
    ]
    for section in results["sections"]:
        parts.append(f"## {HEADINGS[section]}")
        for name, title in CHARTS[section].items():
            if name in charts:
                parts.append(f"![{title}]({folder}{name}.png)")
        parts += [table.markdown() for table in tables(results) if table.section == section]
    return "\n\n".join(parts) + "\n"

"""Compares two results: what became faster, what slower.

    python benches/compare.py OLD.json NEW.json [--tolerance 10]

Exit code 1 when something of ours is worse by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import label

# Figures by the path to them in a row, whether more is better, and their unit.
FIGURES = (
    (("seconds", "min"), False, 1, "s"),
    (("peak_bytes", "median"), False, 1e6, "MB"),
    (("gb_per_s",), True, 1, "GB/s"),
)


def figures(results: dict[str, Any]) -> Iterator[tuple[str, float, bool, bool]]:
    """Name, value, whether more is better, and whether it is ours."""
    for section, parts in results["sections"].items():
        for part, rows in parts.items():
            for row in rows:
                for path, more, divisor, unit in FIGURES:
                    value: Any = row
                    for key in path:
                        value = value.get(key) if value else None
                    if value is not None:
                        name = f"{section} {part}: {label(row['what'])}, {unit}"
                        yield name, value / divisor, more, "yardstick" not in row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=10, metavar="PERCENT")
    args = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (args.old, args.new))
    if old["machine"] != new["machine"]:
        print("The machines differ.", file=sys.stderr)

    before = {name: value for name, value, *_ in figures(old)}
    lines, compared, worst = [], 0, False
    for name, value, more, ours in figures(new):
        if name not in before:
            continue
        compared += 1
        change = 100 * (value / before[name] - 1)
        if abs(change) <= args.tolerance:
            continue
        better = (change > 0) == more
        worst |= ours and not better
        word = "better" if better else "WORSE" if ours else "worse, not ours"
        lines.append((name, f"{before[name]:.3f}", f"{value:.3f}", f"{change:+.1f} %", word))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for name, *cells, word in lines:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:]))
        print("  ".join([name.ljust(widths[0]), *numbers, word]))
    missing = len(before) - compared
    if missing:
        print(f"{missing} figures of {args.old} are not in {args.new}")
    print(f"{compared} figures compared, {len(lines)} changed by more than {args.tolerance:g} %")
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())

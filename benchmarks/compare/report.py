"""The report of a comparison: a table, a JSON file and a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["Row", "print_table", "write_json", "write_picture"]


@dataclass
class Row:
    """The measurements of one peer."""

    name: str
    #: Milliseconds of each call, one after another without a pause.
    tight: list[float] = field(default_factory=list)
    #: The same with pauses of 20 to 50 ms before each call.
    gaps: list[float] = field(default_factory=list)
    #: Commands in a second, of each round, by the number of callers.
    rates: dict[int, list[float]] = field(default_factory=dict)
    #: Only of this system: processor time of each part for one execution, in milliseconds.
    cpu_ms: dict[str, float] = field(default_factory=dict)
    #: Only of this system: Redis commands of one execution by name, those inside Lua included.
    commands: dict[str, float] = field(default_factory=dict)
    #: Only of this system: bytes that one execution leaves in Redis.
    redis_bytes: float = 0
    #: Only of this system: Redis commands in a second without any work.
    idle_commands: float = 0
    #: Only of this system: PSS of each part in MiB.
    memory_mib: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, object]:
        """Return what the JSON file contains: percentiles instead of single times."""
        return {
            **asdict(self),
            "tight": percentiles(self.tight),
            "gaps": percentiles(self.gaps),
            "rates": {callers: statistics.median(rates) for callers, rates in self.rates.items()},
        }


def percentiles(times: list[float]) -> dict[str, float]:
    """Return the median and the 95th and 99th percentile."""
    cuts = statistics.quantiles(times, n=100)
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def print_table(rows: list[Row], reference: str) -> None:
    """Print all rows, with the ratio of each to a reference row."""
    base = next((row for row in rows if row.name == reference), rows[0])
    callers = sorted({number for row in rows for number in row.rates})
    head = f"{'/bin/true':34} {'p50 ms':>7} {'p99':>7} {'x':>5}   {'gaps p50':>8} {'x':>5}  "
    print(head + "".join(f"{number:>6} callers/s {'x':>5}" for number in callers))
    for row in rows:
        tight, gaps = percentiles(row.tight), percentiles(row.gaps)
        line = f"{row.name:34} {tight['p50']:7.2f} {tight['p99']:7.2f}"
        base_tight, base_gaps = percentiles(base.tight), percentiles(base.gaps)
        line += f" {tight['p50'] / base_tight['p50']:5.2f}   {gaps['p50']:8.2f} {gaps['p50'] / base_gaps['p50']:5.2f}  "
        for number in callers:
            rate = statistics.median(row.rates[number])
            line += f"{rate:14.0f} {rate / statistics.median(base.rates[number]):7.2f}"
        print(line)
    print(f"x: ratio to {base.name}")
    for row in rows:
        if row.commands:
            _print_costs(row)


def _print_costs(row: Row) -> None:
    print(f"\n{row.name}, for one execution")
    print("  processor ms: " + ", ".join(f"{part} {ms:.2f}" for part, ms in row.cpu_ms.items()))
    shown = {name: number for name, number in sorted(row.commands.items()) if number >= 0.05}
    print(f"  Redis commands {sum(row.commands.values()):.1f}: " + ", ".join(f"{n} {c:.2g}" for n, c in shown.items()))
    print(f"  bytes left in Redis {row.redis_bytes:.0f}")
    print(
        f"  at rest: {row.idle_commands:.2f} Redis commands a second; PSS in MiB: "
        + ", ".join(f"{part} {mib:.0f}" for part, mib in row.memory_mib.items())
    )


def write_json(rows: list[Row], path: Path) -> None:
    """Write all rows, with the machine that they were measured on."""
    machine = {"processors": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    path.write_text(json.dumps({"machine": machine, "rows": [row.summary() for row in rows]}, indent=2) + "\n")


def write_picture(rows: list[Row], path: Path) -> None:
    """Draw the latency of each peer as an SVG: a bar up to p50, a line up to p99."""
    longest = max(percentiles(row.tight)["p99"] for row in rows)
    scale, left, height = 460 / longest, 240, 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{height * len(rows) + 30}" '
        'font-family="sans-serif" font-size="13">',
        '<text x="8" y="18">/bin/true, one call after another: bar p50, line p99, in ms</text>',
    ]
    for place, row in enumerate(rows):
        cuts, top = percentiles(row.tight), 28 + place * height
        parts += [
            f'<text x="8" y="{top + 14}">{escape(row.name)}</text>',
            f'<rect x="{left}" y="{top + 2}" width="{cuts["p50"] * scale:.1f}" height="16" fill="#4a7ab5"/>',
            f'<rect x="{left}" y="{top + 9}" width="{cuts["p99"] * scale:.1f}" height="2" fill="#222"/>',
            f'<text x="{left + cuts["p99"] * scale + 6:.0f}" y="{top + 14}">{cuts["p50"]:.1f}</text>',
        ]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")

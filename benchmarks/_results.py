"""What every benchmark takes as arguments and gives as results: medians, tables, a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import apsw


@dataclass(frozen=True, slots=True)
class Result:
    """One row of a table."""

    case: str
    values: dict[str, str]  # column -> text
    goal: str = ""
    met: bool | None = None  # None: no goal, or not at this size
    samples: Any = None  # all measurements, for --json


class Samples:
    """Measurements by case and competitor."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, list[float]]] = {}

    def add(self, case: str, competitor: str, value: float) -> None:
        """One more measurement."""
        self.all.setdefault(case, {}).setdefault(competitor, []).append(value)

    def median(self, case: str, competitor: str) -> float | None:
        """The median, or None where nothing was measured."""
        values = self.all.get(case, {}).get(competitor)
        return median(values) if values else None


def seconds(value: float | None) -> str:
    """A time in the unit that suits it."""
    if value is None:
        return "-"
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(ours: float | None, theirs: float | None) -> str:
    """How many times theirs ours is."""
    return "-" if ours is None or not theirs else f"{ours / theirs:.3g}x"


def print_table(title: str, results: Sequence[Result]) -> None:
    """Results as a Markdown table."""
    columns = list(dict.fromkeys(name for result in results for name in result.values))
    lines = [["", *columns, "goal", "met"]]
    for result in results:
        met = {True: "yes", False: "NO", None: ""}[result.met]
        lines.append([result.case, *(result.values.get(name, "") for name in columns), result.goal, met])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n{title}\n")
    for line in lines:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")
    print(flush=True)


def parse_arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What every benchmark takes: `small`, `json`, and `charts`, the folder for what `_chart.py` draws."""
    return argument_parser(description).parse_args(argv)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what every benchmark takes, for one that takes more."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="a small database and few rounds: works, proves nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too, with all measurements")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="draw charts there, PNG files, by matplotlib")
    return parser


def report(title: str, results: Sequence[Result], arguments: argparse.Namespace) -> None:
    """Print the table and write the JSON file if one is wanted."""
    print_table(title, results)
    write_json(title, results, arguments)


def write_json(title: str, results: Sequence[Result], arguments: argparse.Namespace) -> None:
    """Write the JSON file if one is wanted."""
    if arguments.json:
        document = {
            "title": title,
            "small": arguments.small,
            "python": platform.python_version(),
            "sqlite": apsw.sqlite_lib_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "results": [{name: getattr(result, name) for name in Result.__slots__} for result in results],
        }
        arguments.json.write_text(json.dumps(document, indent=2, default=str) + "\n")

"""Charts of benchmarks: PNG files for docs/, drawn by matplotlib (the extra `charts`).

`bars` compares competitors case by case, `lines` shows how something grows. Knows nothing of what is measured. A
benchmark draws only when it is given `--charts FOLDER`; without matplotlib it says so and goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH_IN, DPI = 8.0, 110  # inches, dots an inch: as wide as a page of docs/
BAR_IN, FRAME_IN = 0.24, 1.3  # height of one bar, and of all that is around the bars, in inches
LINES_HEIGHT_IN = 3.6
PALETTE = 64  # colors of a file
COLORS = ("#1f77b4", "#b0b0b0", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#d62728")
"""The first is for litevfs."""


def bars(
    arguments: argparse.Namespace,
    name: str,
    title: str,
    values: Mapping[str, Mapping[str, float | None]],
    unit: str,
    *,
    log: bool = False,
) -> Path | None:
    """Draw horizontal bars, `values` by case and competitor, to `FOLDER/name.png`; return its path.

    A competitor without a value in a case has no bar there. Where values lie decades apart, use a `log` scale. Return
    None if no chart is wanted, or matplotlib is missing.
    """
    if not _can_draw(arguments):
        return None
    cases = {case: {who: value for who, value in shown.items() if value is not None} for case, shown in values.items()}
    count = sum(map(len, cases.values())) + len(cases)
    figure, axes = _figure(title, FRAME_IN + BAR_IN * count)
    bars_of: dict[str, list[tuple[float, float]]] = {}  # (position, value) by competitor
    middles, position = [], 0
    for shown in cases.values():
        middles.append(position + (len(shown) - 1) / 2)
        for who, value in shown.items():
            bars_of.setdefault(who, []).append((position, value))
            position += 1
        position += 1  # one bar's height of space between cases
    for i, (who, placed) in enumerate(bars_of.items()):
        drawn = axes.barh(*zip(*placed, strict=True), color=COLORS[i % len(COLORS)], label=who)
        axes.bar_label(drawn, fmt=_short, padding=3, fontsize=8)
    axes.set_yticks(middles, list(cases), fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(unit)
    return _write(figure, axes, arguments, name)


def lines(
    arguments: argparse.Namespace,
    name: str,
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    *,
    log: bool = False,
) -> Path | None:
    """Draw one line for each of `series`, points (x, y), to `FOLDER/name.png`; `log`: both axes. As `bars` else."""
    if not _can_draw(arguments):
        return None
    figure, axes = _figure(title, LINES_HEIGHT_IN)
    for i, (who, points) in enumerate(series.items()):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLORS[i % len(COLORS)], label=who)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return _write(figure, axes, arguments, name)


def _can_draw(arguments: argparse.Namespace) -> bool:
    if arguments.charts is None:
        return False
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no charts: they need matplotlib (pip install 'litevfs[charts]')", file=sys.stderr)
        return False
    return True


def _figure(title: str, height_in: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: that keeps figures, and looks for a screen

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(visible=True, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write(figure: Any, axes: Any, arguments: argparse.Namespace, name: str) -> Path:
    axes.legend(fontsize=8, frameon=False)
    arguments.charts.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.charts / f"{name}.png"
    figure.savefig(path, metadata={"Software": None})  # no version: the same numbers make the same file
    _shrink(path)
    print(f"wrote {path}", file=sys.stderr)
    return path


def _shrink(path: Path) -> None:
    """Keep as many colors as such a chart shows: a third of the bytes."""
    from PIL import Image  # matplotlib stands on it

    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(PALETTE)
    reduced.save(path, optimize=True)


def _short(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"

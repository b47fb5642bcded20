"""Charts of benchmarks are drawn where matplotlib is, and left out with a word where it is not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def draw(folder: Path, *, first: str = "") -> subprocess.CompletedProcess[str]:
    """Both kinds of charts, in a process of its own: matplotlib keeps the files of its fonts open."""
    program = f"""
        import argparse, sys
        from pathlib import Path
        {first}
        from _chart import bars, lines

        arguments = argparse.Namespace(charts=Path({str(folder)!r}))
        values = {{"hot": {{"litevfs": 1.5, "peer": 90.0}}, "scan": {{"litevfs": 2.0, "peer": None}}}}
        print(bars(arguments, "bars", "Local reads", values, "times native", log=True))
        series = {{"litevfs": [(1, 2), (10, 15)], "peer": [(1, 30)]}}
        print(lines(arguments, "lines", "Memory", series, "replicas", "MB"))
        print(bars(argparse.Namespace(charts=None), "unwanted", "Local reads", values, "times native"))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib: pip install 'litevfs[charts]'")
def test_bars_and_lines_are_png_files_and_the_same_for_the_same_numbers(tmp_path):
    done = draw(tmp_path)
    assert done.stdout.splitlines() == [str(tmp_path / "bars.png"), str(tmp_path / "lines.png"), "None"]
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(drawn) == ["bars.png", "lines.png"]
    assert all(content.startswith(b"\x89PNG") for content in drawn.values())
    draw(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == drawn


def test_without_matplotlib_benchmarks_go_on_without_charts(tmp_path):
    done = draw(tmp_path / "charts", first="sys.modules['matplotlib'] = None")
    assert done.stdout.splitlines() == ["None"] * 3
    assert "litevfs[charts]" in done.stderr
    assert not (tmp_path / "charts").exists()

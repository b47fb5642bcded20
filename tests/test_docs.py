"""The tables of docs/ against the code they describe, and docs/ as the site that it makes."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from litevfs.options import SPECS, OptionSpec
from litevfs.units import parse_duration_s, parse_size_bytes

ROOT = Path(__file__).parents[1]
OPTIONS = ROOT / "docs" / "options.md"


def options_table() -> str:
    """What stands in docs/options.md between its markers."""
    rows = ["| option | default | |", "|---|---|---|"]
    rows += [f"| `{spec.name}` | {_shown_default(spec)} | {spec.help} |" for spec in SPECS]
    return "\n".join(rows)


def _shown_default(spec: OptionSpec) -> str:
    if spec.default is None or spec.default == "":
        return "none"
    if spec.parse is parse_duration_s:
        return f"{spec.default:g}s"
    if spec.parse is parse_size_bytes:
        return f"{spec.default // 10**9}GB" if spec.default >= 10**9 else f"{spec.default // 10**6}MB"
    return str(spec.default).lower()


def test_docs_list_every_option_with_its_default_and_meaning() -> None:
    found = re.search(r"<!-- options -->\n(.*?)\n<!-- end of options -->", OPTIONS.read_text(), re.DOTALL)
    assert found is not None
    assert found[1] == options_table()


def test_pages_make_a_site_in_which_every_link_leads_somewhere(tmp_path: Path) -> None:
    if find_spec("material") is None or find_spec("mkdocs") is None:
        pytest.skip("needs the extra `docs` (pip install 'litevfs[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "doors" / "arrow" / "index.html").exists()

"""README.md's tables against the code they describe."""

from __future__ import annotations

import re
from pathlib import Path

from litevfs.options import SPECS, OptionSpec
from litevfs.units import parse_duration_s, parse_size_bytes

README = Path(__file__).parents[1] / "README.md"


def options_table() -> str:
    """What stands in the README between its markers."""
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


def test_readme_lists_every_option_with_its_default_and_meaning() -> None:
    found = re.search(r"<!-- options -->\n(.*?)\n<!-- end of options -->", README.read_text(), re.DOTALL)
    assert found is not None
    assert found[1] == options_table()

"""The tables of docs/ against the code they describe, and docs/ as the site that it makes."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from litevfs import errors
from litevfs.errors import LitevfsError
from litevfs.options import SPECS, OptionSpec
from litevfs.units import parse_duration_s, parse_size_bytes

ROOT = Path(__file__).parents[1]
OPTIONS = ROOT / "docs" / "options.md"
ERRORS = ROOT / "docs" / "errors.md"


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


def errors_table() -> str:
    """What stands in docs/errors.md between its markers: each error after its parent, and what it is besides."""
    rows = ["| error | is also | |", "|---|---|---|"]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, LitevfsError) and kind is not LitevfsError:
            kin = ", ".join(f"`{base.__name__}`" for base in kind.__bases__ if base is not LitevfsError)
            rows.append(f"| `{kind.__name__}` | {kin} | {' '.join(inspect.cleandoc(kind.__doc__ or '').split())} |")
    return "\n".join(rows)


def test_dotted_names_in_the_package_s_own_words_are_there() -> None:
    """`litevfs.units.format_bytes` in a docstring or a comment: the module, and the name in it."""
    missing = []
    for path in sorted((ROOT / "litevfs").rglob("*.py")):
        for name in re.findall(r"`(litevfs(?:\.\w+)+)", path.read_text()):
            module, *rest = _module_of(name)
            if rest and not re.search(rf"\b{rest[0]}\b", module):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


def _module_of(name: str) -> list[str]:
    """The text of the module that a dotted name begins with, and the parts after it."""
    parts = name.split(".")
    place = ROOT
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / f"{parts[0]}.py" if parts else place / "__init__.py"
    if parts and file.exists():
        return [file.read_text(), *parts[1:]]
    return [(place / "__init__.py").read_text(), *parts]


def test_the_architecture_names_each_package_and_only_modules_that_there_are() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"[\w/]+/\w+\.py", text)) | {"options.py", "errors.py", "cli.py"}
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / "litevfs" / name).exists() and not (ROOT / name).exists()]
    table = text.partition("## A new transaction")[0]
    packages = {path.parent.name for path in (ROOT / "litevfs").glob("*/__init__.py")}
    assert packages <= set(re.findall(r"`([a-z_]+)`", table))


@pytest.mark.parametrize(
    ("page", "name", "table"), [(OPTIONS, "options", options_table), (ERRORS, "errors", errors_table)]
)
def test_docs_list_every_one_with_its_meaning(page: Path, name: str, table: Callable[[], str]) -> None:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", page.read_text(), re.DOTALL)
    assert found is not None
    assert found[1] == table()


def test_pages_make_a_site_in_which_every_link_leads_somewhere(tmp_path: Path) -> None:
    if find_spec("material") is None or find_spec("mkdocs") is None:
        pytest.skip("needs the extra `docs` (pip install 'litevfs[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "doors" / "arrow" / "index.html").exists()

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "check_layering.py"


def run_check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, folder], capture_output=True, text=True, check=False)


@pytest.fixture
def package(tmp_path: Path):
    """Writes a package of the given sources and returns its folder."""

    def write(**sources: str) -> Path:
        folder = tmp_path / "litevfs"
        for name, text in sources.items():
            path = folder / (name.replace("__", "/").replace("/init/", "__init__") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    return write


def test_the_package_keeps_to_its_layers():
    result = run_check(ROOT / "litevfs")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "text", "finding"),
    [
        ("cache", "from litevfs.vfs import File", "cache.py:1: cache imports vfs; it may import errors "),
        ("cache", "from litevfs import vfs", "cache imports vfs"),
        ("cache", "import litevfs.vfs", "cache imports vfs"),
        ("cache", "from . import vfs", "cache imports vfs"),
        ("cache", "from .vfs import File", "cache imports vfs"),
        ("ltx__format", "from ..vfs import File", "ltx.format imports vfs"),
        ("cache", "def f():\n    from litevfs import vfs", "cache.py:2: cache imports vfs"),
        ("cache", "import typing\nif typing.TYPE_CHECKING:\n    import litevfs.vfs", "cache.py:3: cache imports vfs"),
        ("cache", "from litevfs import connect", "cache imports litevfs;"),
        (
            "ltx__names",
            "from litevfs.replica_clients.base import LTXFileInfo",
            "ltx.names imports replica_clients.base",
        ),
        ("vfs", "import litevfs.testing.faults", "vfs imports testing.faults"),
        ("errors", "import numpy as np", "errors imports numpy; that is for "),
        ("pages", "from botocore.exceptions import ClientError", "pages imports botocore; that is for "),
        ("vfs", "import requests", "vfs imports requests; that is for testing.*"),
        ("pages", "def f(file):\n    return file.xRead(1, 2)", "pages.py:2: pages uses xRead"),
        ("pages", "def xSync(self): ...", "pages.py:1: pages uses xSync"),
        ("unplanned", "", "unplanned has no layer: add it to the table in tools/check_layering.py"),
        ("ltx__unplanned", "", "ltx.unplanned has no layer"),
    ],
)
def test_what_the_table_does_not_allow_is_found(package, module: str, text: str, finding: str):
    sources = {
        "vfs": "class File: ...",
        "errors": "",
        "ltx__names": "",
        "replica_clients__base": "LTXFileInfo = 1",
        "testing__faults": "",
    }
    result = run_check(package(**sources | {module: text}))
    assert finding in result.stdout
    assert result.returncode == 1
    assert "1 findings" in result.stdout


def test_modules_of_one_layer_may_import_one_another_but_not_in_a_circle(package):
    one_way = {"errors": "", "cache": "from litevfs.blocks import Block", "blocks": "Block = 1"}
    assert run_check(package(**one_way)).returncode == 0
    both = run_check(package(**one_way | {"blocks": "from litevfs.cache import Cache"}))
    assert both.returncode == 1
    assert "in a circle: " in both.stdout


def test_what_the_table_allows_passes(package):
    folder = package(
        errors="import apsw",
        ltx__format="from litevfs.errors import LitevfsError",
        ltx__page_index="import numpy as np\nfrom litevfs.ltx import format",
        replica_clients__s3="import boto3\nimport botocore.exceptions\nfrom litevfs import errors",
        vfs="import apsw\nfrom litevfs.ltx import page_index\nclass File:\n    def xRead(self): ...",
        testing__faults="import pytest\nfrom litevfs import connect",
        cli="import litevfs\nfrom litevfs.ltx.page_index import PageIndex",
    )
    (folder / "__init__.py").write_text("from litevfs.vfs import File")
    result = run_check(folder)
    assert result.returncode == 0, result.stdout

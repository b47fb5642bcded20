"""What a user installs, and how a fresh machine gets there."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint, packages_distributions
from pathlib import Path
from types import ModuleType

import pytest

import litevfs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "litevfs").rglob("*.py")}


def distribution_name(requirement: str) -> str:
    """The bare name of a requirement such as `moto[s3]>=5`, as pip compares names."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name
    return name[0].lower().replace("_", "-")


RUNTIME = {distribution_name(requirement) for requirement in PYPROJECT["project"]["dependencies"]}
STORAGES = {
    distribution_name(requirement)
    for extra in ("azure", "gs", "nats", "sftp")
    for requirement in PYPROJECT["project"]["optional-dependencies"][extra]
} | {"azure", "google", "nats"}  # what those that are not installed here are imported as
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
EXTRA_MODULES = (
    *("azure", "dask", "datasette", "django", "duckdb", "google", "matplotlib", "nats", "opentelemetry", "pandas"),
    *("paramiko", "polars", "prometheus_client", "pyarrow", "pyspark", "pytest", "ray", "sqlalchemy", "yaml"),
    "zstandard",
)
CHARTS = {distribution_name(name) for name in EXTRAS["charts"]}
METRICS = {distribution_name(name) for name in EXTRAS["metrics"]}
CONFIG = {distribution_name(name) for name in EXTRAS["config"]}
TOOLS = {distribution_name(name) for extra in ("integrations", "engines") for name in EXTRAS[extra]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_its_types_and_its_license_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"litevfs-{PYPROJECT['project']['version']}.dist-info"
    extra = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == SOURCES | {"litevfs/py.typed"} | extra


def test_license_is_the_whole_apache_license():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text


OF_ONE_SOURCE = {
    "litevfs/commands/metrics.py": METRICS,  # these three: loaded by `--metrics-addr` and `litevfs.metrics` alone
    "litevfs/live/metrics.py": METRICS,
    "litevfs/live/prometheus.py": METRICS,
    "litevfs/replicate/config/document.py": CONFIG,  # by `--config`
    "litevfs/files/compressed.py": {"zstandard"},  # by `cache_dir_compress`
    "litevfs/__pyinstaller/hook-litevfs.py": {"pyinstaller"},  # that runs it
    "litevfs/explain.py": CHARTS,  # by `explain-io --png`
    "litevfs/replica_clients/http/transport.py": {"certifi"},  # preferred to botocore's list where it is installed
}


def test_package_imports_nothing_that_it_does_not_require():
    distributions = packages_distributions()
    foreign = set()
    for source in sorted(SOURCES):
        if source.startswith("litevfs/testing/"):  # for people who have pytest
            continue
        for package in imported_packages(ast.parse((ROOT / source).read_bytes())):
            names = {distribution_name(name) for name in [package, *distributions.get(package, [])]}
            allowed = RUNTIME | {"litevfs", "botocore"}
            if source.startswith("litevfs/integrations/"):
                allowed |= TOOLS
            if source.startswith("litevfs/replica_clients/"):
                allowed |= STORAGES
            allowed |= OF_ONE_SOURCE.get(source, set())
            if package not in sys.stdlib_module_names and not names & allowed:
                foreign.add(f"{source}: {package}")
    assert not foreign


def imported_packages(tree: ast.Module) -> set[str]:
    """Top-level names that a module needs at run time (what stands under TYPE_CHECKING is left out)."""
    packages = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.partition(".")[0])
    return packages


def test_docs_give_a_reason_for_each_dependency_and_for_no_other():
    section = (ROOT / "docs" / "development.md").read_text().partition("What it stands on")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w.-]+) \| .+ \|$", section, re.MULTILINE)
    assert rows.pop(0) == "package"
    assert set(rows) == RUNTIME


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_make_targets_need_no_environment_made_before(tmp_path: Path, target: str):
    result = make("-n", target, f"VENV={tmp_path / 'none'}", "PYTHON=python-of-choice")
    assert result.returncode == 0, result.stderr
    assert f"python-of-choice -m venv {tmp_path / 'none'}" in result.stdout


@needs_make
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ('case "$2" in *version_info*) exit 1;; esac', "litevfs needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "comes without the modules venv and ensurepip"),
    ],
)
def test_make_says_what_an_unfit_python_lacks(tmp_path: Path, answer: str, complaint: str):
    python = tmp_path / "unfit-python"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    result = make("test", f"VENV={tmp_path / 'none'}", f"PYTHON={python}")
    assert result.returncode != 0
    assert complaint in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_process_that_only_reads_loads_neither_the_primary_nor_what_other_storages_need():
    program = (
        "import sys, litevfs\n"
        f"connection = litevfs.connect({str(ROOT / 'tests' / 'fixtures' / 'orders' / 'replica')!r})\n"
        "connection.execute('SELECT count(*) FROM orders').fetchall()\n"
        "connection.close()\n"
        "rare = ('litevfs.replicate', 'litevfs.maintenance', 'litevfs.operations', 'litevfs.integrations', 'boto3', "
        "'numpy.ma.')\n"
        "print(sorted(name for name in sys.modules if name.startswith(rare)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_the_command_runs_where_no_extra_is_installed():
    """`pip install litevfs` alone: everything that the dependencies did not bring is kept from being imported."""
    program = (
        "import sys\n"
        f"for name in {EXTRA_MODULES!r}:\n"
        "    sys.modules[name] = None\n"
        "from litevfs.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    replica = str(ROOT / "tests" / "fixtures" / "orders" / "replica")
    for arguments in (
        ["query", replica, "SELECT count(*) FROM orders"],
        ["verify", replica],
        ["doctor", replica, "--reader"],
    ):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    for name in litevfs.__all__:
        assert getattr(litevfs, name) is not None
    assert set(litevfs.__all__) <= set(dir(litevfs))
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        litevfs.conect  # noqa: B018


def test_the_lowest_versions_that_are_tried_are_the_bounds():
    """tests/lowest.txt, with which .ci/run installs, names a version of each bound that integrations have."""
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    for requirement in [*PYPROJECT["project"]["dependencies"], *EXTRAS["integrations"]]:
        name, _, bound = re.sub(r"\[.*\]", "", requirement).partition(">=")
        if bound:
            assert f"{tried[name]}.".startswith(f"{bound}."), requirement


def test_pyinstaller_is_told_of_the_modules_that_are_imported_by_name(monkeypatch: pytest.MonkeyPatch):
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in SOURCES}
    hooks = ModuleType("PyInstaller.utils.hooks")
    hooks.collect_submodules = lambda _, **choice: set(filter(choice["filter"], modules))
    hooks.copy_metadata = lambda name: [name]
    for name in ("PyInstaller", "PyInstaller.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, hooks.__name__, hooks)
    entry = EntryPoint("hook-dirs", PYPROJECT["project"]["entry-points"]["pyinstaller40"]["hook-dirs"], "pyinstaller40")
    (folder,) = entry.load()()
    told = runpy.run_path(str(Path(folder) / "hook-litevfs.py"))["hiddenimports"]
    assert {name for name in modules if name.startswith(("litevfs.commands", "litevfs.replica_clients"))} <= told
    assert set(litevfs._HOME_OF.values()) <= told
    engines = {f"litevfs.integrations.{name}" for name in ("dask", "datasette", "ray", "spark")}
    assert engines < modules
    assert not told & engines

"""SQLAlchemy's own suite for dialects; all that it reads comes from a replica (see `sqlalchemy_suite/through.py`).

The suite supposes things that SQLite lacks. What that comes to is found by the same suite with SQLAlchemy's own dialect
for SQLite: whatever fails with litevfs' has to fail with that, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SUITE = Path(__file__).with_name("sqlalchemy_suite")
TIME_LIMIT_S = 500
OWN_LIMITS: set[str] = set()
"""Tests that fail with our dialect alone, and why they may."""


def outcomes(url: str, folder: Path) -> dict[str, str]:
    """Test -> "passed", "skipped" or "failed"."""
    folder.mkdir()
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        "-c",
        "setup.cfg",
        "--rootdir",
        ".",
        "-p",
        "no:cacheprovider",
    ]
    subprocess.run(
        [*command, "--dburi", url, "--junitxml", str(report)],
        cwd=SUITE,
        env=os.environ | {"THROUGH_FOLDER": str(folder), "PYTHONPATH": str(SUITE)},
        stdout=subprocess.DEVNULL,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.sub(r"_sqlite\+\w+", "", f"{case.get('classname')}.{case.get('name')}")
        tags = {child.tag for child in case}
        found[name] = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
    return found


@pytest.mark.soak  # two runs of 1,400 tests
@pytest.mark.timeout(2 * TIME_LIMIT_S)
def test_whatever_fails_fails_with_sqlalchemys_own_dialect_too(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs the extra `integrations` (pip install 'litevfs[integrations]')")
    ours = outcomes("litevfs_through:///x", tmp_path / "ours")
    theirs = outcomes(f"sqlite:///{tmp_path}/theirs.db", tmp_path / "theirs")
    assert sum(outcome == "passed" for outcome in ours.values()) > 600
    differing = {n for n, outcome in ours.items() if outcome == "failed" and theirs.get(n) == "passed"}
    assert differing == OWN_LIMITS

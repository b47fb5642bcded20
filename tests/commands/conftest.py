"""Fixtures of the commands' tests: the replica that Litestream wrote, and a command run in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from litevfs.cli import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "orders"


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """`run("query", url, "SELECT 1")`."""

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # of argparse
            code = int(error.code or 0)
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture
def orders() -> str:
    """The path of the replica that Litestream wrote."""
    return str(FIXTURE / "replica")


@pytest.fixture
def orders_copy(tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(FIXTURE / "replica", tmp_path / "replica"))


@pytest.fixture
def expected() -> Any:
    """What Litestream itself answered, by TXID."""
    return json.loads((FIXTURE / "expected.json").read_text())

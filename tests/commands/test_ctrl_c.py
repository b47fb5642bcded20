"""Ctrl-C while SQLite is in our VFS: it reaches the code that runs the query, wherever it strikes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

import litevfs
from tests.interrupts import interrupted_everywhere

pytestmark = pytest.mark.slow

REPLICA = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"


def connect() -> apsw.Connection:
    return litevfs.connect(str(REPLICA), poll_interval=0)


@pytest.mark.plan("K08")
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda connection: connection.execute("SELECT id FROM orders LIMIT 1").fetchall(), id="query"),
        pytest.param(lambda connection: connection.pragma("litestream_status"), id="PRAGMA"),
        pytest.param(lambda connection: connection.execute("SELECT litestream_time()").fetchall(), id="function"),
    ],
)
def test_ctrl_c_is_never_lost_and_the_connection_goes_on(ask: Callable[[apsw.Connection], object]):
    for connection in interrupted_everywhere(connect, ask):
        assert ask(connection)
        connection.close()


@pytest.mark.plan("K08")
def test_ctrl_c_while_opening_is_never_lost():
    opened: list[apsw.Connection] = []
    for _ in interrupted_everywhere(lambda: None, lambda _: opened.append(connect())):
        while opened:
            opened.pop().close()

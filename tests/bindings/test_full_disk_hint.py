"""A replica takes no room on any disk: SQLite's word that one is full says which it may be, at every door."""

from __future__ import annotations

from typing import Any

import pytest

import litevfs
import litevfs.dbapi
from litevfs.errors import HINT_FULL
from tests.primary import Primary
from tests.scripted import Script

DOORS = {"connect": litevfs.connect, "connect_stdlib": litevfs.connect_stdlib, "dbapi": litevfs.dbapi.connect}


@pytest.mark.parametrize("door", DOORS)
def test_a_full_disk_is_told_from_the_replica(door: str):
    connect: Any = DOORS[door]
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        connection = connect(script.url)
        for sql in ("ATTACH ':memory:' AS own", "PRAGMA own.max_page_count = 3", "CREATE TABLE own.big(x)"):
            connection.execute(sql)
        with pytest.raises(Exception, match="database or disk is full") as caught:
            connection.execute("INSERT INTO own.big SELECT zeroblob(100000)")
        assert HINT_FULL in str(caught.value)
        connection.close()

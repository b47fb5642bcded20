"""Ctrl-C ends a query that reads no page, too: SQLite's machine lets Python look for signals now and then."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

import litevfs
import litevfs.dbapi
from tests.primary import Primary
from tests.scripted import Script

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.mark.parametrize("connect", [litevfs.connect, litevfs.dbapi.connect])
def test_a_query_that_only_computes_ends_with_ctrl_c_and_the_connection_goes_on(connect: Any):
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(7)")
        connection = connect(script.url)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            connection.execute(ENDLESS).fetchall()
        timer.join()
        assert connection.execute("SELECT x FROM t").fetchall() == [(7,)]
        connection.close()

"""The end of the interpreter with connections of APSW still open, some of which live longer than APSW's module."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

import pytest

from litevfs.replica_clients.file import FileReplicaClient
from tests.primary import Primary

KEEPERS = {
    "a hook": "sys.excepthook = lambda *_, kept=kept: None",
    "sys": "sys.kept = kept",
    "a codec": "import codecs; codecs.register(lambda name, kept=kept: None)",
    "a cycle": "import gc; gc.disable(); kept.append(kept); del kept",
    "another thread": "threading.Thread(target=kept[0].execute, args=(LONG,), daemon=True).start(); time.sleep(0.5)",
}
DOORS = ("connect", "apsw", "attach", "dbapi")


@pytest.mark.parametrize(
    ("door", "keeper"),
    [
        pytest.param(door, keeper, marks=() if door == DOORS[number % 4] else pytest.mark.soak)
        for number, keeper in enumerate(KEEPERS)
        for door in DOORS
    ],
)
@pytest.mark.slow
def test_the_interpreter_ends_well_with_a_connection_that_only_its_last_steps_free(tmp_path, keeper, door):
    """As celery ends, whose tasks know the module that opened it."""
    with closing(FileReplicaClient(tmp_path / "replica")) as client, Primary(client) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES (1), (2), (3)")
    uri = f"file:x?vfs=litestream&replica_url={tmp_path}/replica"
    opening = {
        "connect": f"litevfs.connect({str(tmp_path / 'replica')!r})",
        "apsw": f"apsw.Connection({uri!r}, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)",
        "attach": "apsw.Connection('file::memory:', flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI)",
        "dbapi": f"litevfs.dbapi.connect({str(tmp_path / 'replica')!r}, check_same_thread=False)",
    }[door]
    code = f"""
import atexit, apsw, litevfs, sys, threading, time
LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n, t"
litevfs.register()
kept = [{opening}]
if {door!r} == "attach":
    kept[0].execute("ATTACH {uri!r} AS r")
kept.append(kept[0].cursor().execute("SELECT x FROM t"))
assert next(iter(kept[1]))[0] == 1
def use(connection=kept[0], keeper={keeper!r}):
    print("threads" if keeper == "another thread" else connection.execute("SELECT count(*) FROM t").fetchone()[0])
atexit.register(use)
{KEEPERS[keeper]}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() in ("3", "threads")

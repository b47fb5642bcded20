"""The VFS in `sqlite3` where processes end: connections left open, threads that still read, Ctrl-C, subinterpreters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ORDERS = ROOT / "tests" / "fixtures" / "orders" / "replica"


def run(program: str, *, ends_with: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program, which finds the replica in `url`, and check how it ends."""
    head = f"import litevfs, sqlite3, threading\nurl = {str(ORDERS)!r}\n"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", head + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == ends_with, (done.returncode, done.stdout, done.stderr)
    return done


@pytest.mark.parametrize(
    "left",
    [
        "con = litevfs.connect_stdlib(url); cursor = con.execute('SELECT * FROM orders'); next(cursor)",
        "con = litevfs.connect_stdlib(url, cache_size=0); con.execute('BEGIN'); con.execute('SELECT * FROM orders')",
        "import builtins; builtins.con = litevfs.connect_stdlib(url)",
        "import sys; x = [litevfs.connect_stdlib(url)]; x.append(x); sys.left = x[0].execute('SELECT * FROM orders')",
    ],
)
def test_a_connection_that_is_left_open_ends_with_the_process(left):
    done = run(left)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_runs_after_the_end_of_the_binding_gets_errors_of_sqlite_and_no_crash():
    done = run("""
        import atexit

        def last():
            for sql in ("SELECT count(*) FROM orders", "SELECT count(*) FROM customer"):
                try:
                    con.execute(sql).fetchall()
                except sqlite3.Error as error:
                    print(type(error).__name__)
            try:
                litevfs.connect_stdlib(url)
            except litevfs.SQLiteLibraryError:
                print("no more")
            con.close()
            print(sqlite3.connect(":memory:").execute("SELECT 1").fetchone())

        atexit.register(last)
        con = litevfs.connect_stdlib(url, cache_size=0)
        con.execute("PRAGMA cache_size=0")
    """)
    *errors, no_more, row = done.stdout.splitlines()
    assert len(errors) == 2
    assert (no_more, row) == ("no more", "(1,)")


@pytest.mark.parametrize("cursors", ["sqlite3.Cursor", "Other", "None"])
def test_threads_that_share_a_connection_take_turns(cursors):
    """Without turns SQLite's mutex and Python's lock hold the threads up for good, and with them the process."""
    done = run(f"""
        import faulthandler
        faulthandler.dump_traceback_later(55, exit=True)
        class Other(sqlite3.Cursor):
            pass
        con = litevfs.connect_stdlib(url, cache_size=0, check_same_thread=False)
        con.execute("PRAGMA cache_size=0")
        con.create_function("nested", 1, lambda number: con.execute("SELECT ?", (number,)).fetchone()[0])
        expected = con.execute("SELECT count(note), max(id) FROM orders").fetchone()
        found = []

        def work():
            for _ in range(5):
                cursor = con.cursor({cursors}) if {cursors} else con
                found.append(cursor.execute("SELECT count(note), nested(max(id)) FROM orders").fetchone())
                rows = cursor.execute("SELECT id FROM customer LIMIT 20")
                assert len([next(rows), *rows.fetchmany(2), *rows]) == 20
                con.executescript("SELECT 1").close()
                con.commit()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(found == [expected] * 20)
        con.close()
    """)
    assert done.stdout.split() == ["True"]


@pytest.mark.parametrize("do", ["query", "open", "function"])
def test_daemon_threads_that_still_read_do_not_crash_the_end(do):
    run(f"""
            import time
            started = threading.Barrier(5)

            def work():
                con = litevfs.connect_stdlib(url, cache_size=0)
                con.execute("PRAGMA cache_size=0")
                started.wait()
                while True:
                    if {do!r} == "query":
                        con.execute("SELECT count(note) FROM orders").fetchall()
                    elif {do!r} == "function":
                        con.execute("SELECT litestream_txid(), litestream_lag()").fetchall()
                    else:
                        litevfs.connect_stdlib(url).close()

            import logging
            logging.getLogger("litevfs").setLevel("CRITICAL")
            threading.excepthook = lambda _: None
            for _ in range(4):
                threading.Thread(target=work, daemon=True).start()
            started.wait()
            time.sleep(0.05)
        """)


def test_ctrl_c_ends_queries_and_leaves_no_wrong_page_behind():
    """At random moments: each query that ends has right rows, whatever was interrupted before."""
    done = run("""
        import os, random, signal, time

        sql = "SELECT count(*), sum(total_cents), group_concat(note) FROM orders"
        con = litevfs.connect_stdlib(url)
        right = con.execute(sql).fetchall()
        rnd = random.Random(7)
        armed = []  # only what is in the `try` is struck
        finished = []

        def strike():
            for _ in range(60):
                while not armed:
                    time.sleep(0.0005)
                armed.clear()
                time.sleep(rnd.random() * 0.01)
                os.kill(os.getpid(), signal.SIGINT)
            finished.append(True)

        thread = threading.Thread(target=strike, daemon=True)
        thread.start()
        interrupted = told = ended = 0
        while not finished:
            try:
                try:
                    armed.append(True)
                    while not finished:
                        con.execute("PRAGMA shrink_memory")
                        rows = con.execute(sql).fetchall()
                        assert rows == right, rows
                        ended += 1
                except sqlite3.OperationalError as error:
                    told += 1
                    time.sleep(1)  # the statement was ended; now comes what ended it
            except KeyboardInterrupt:
                interrupted += 1
        thread.join()
        assert con.execute(sql).fetchall() == right
        assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        con.close()
        print(interrupted >= 59, ended > 0, interrupted, told, ended)
    """)
    assert done.stdout.startswith("True True"), done.stdout
    assert "Exception ignored" not in done.stderr
    assert done.stderr == ""


DROPPING = {
    "for row in con.execute(sql): raise ValueError": "ValueError",
    "for row in litevfs.connect_stdlib(url).execute(sql): raise ValueError": "ValueError",
    "litevfs.connect_stdlib(url).execute('SELECT * FROM nowhere')": "OperationalError",
    "list(map(lambda row: 1 / 0, litevfs.connect_stdlib(url).execute(sql)))": "ZeroDivisionError",
    "con.execute(sql), 1 / 0": "ZeroDivisionError",
}
"""Statements that drop a cursor by an exception, and which one that is."""


def test_a_cursor_that_an_exception_drops_on_its_way_does_not_lose_the_exception():
    done = run(f"""
        con = litevfs.connect_stdlib(url)
        sql = "SELECT * FROM orders"
        for statement in {list(DROPPING)}:
            code = compile(statement, "statement", "exec")
            for _ in range(20):
                try:
                    exec(code)
                except (ValueError, ZeroDivisionError, sqlite3.OperationalError) as error:
                    name = type(error).__name__
                else:
                    raise AssertionError("no exception")
            print(name, con.execute("SELECT count(*) FROM orders").fetchone())
    """)
    assert done.stdout.splitlines() == [f"{name} (2667,)" for name in DROPPING.values()]
    assert done.stderr == ""


def test_a_subinterpreter_is_refused():
    interpreters = "_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters"
    done = run(f"""
        import {interpreters} as interpreters
        import textwrap
        litevfs.connect_stdlib(url).close()
        program = '''
            try:
                import litevfs
                litevfs.connect_stdlib({str(ORDERS)!r})
            except Exception as error:
                print(type(error).__name__, error, flush=True)
            else:
                print("opened", flush=True)
        '''
        try:
            interpreters.run_string(interpreters.create(), textwrap.dedent(program))
        except Exception as error:
            print(type(error).__name__, error)
    """)
    assert "subinterpreter" in done.stdout or "ImportError" in done.stdout, done.stdout
    assert "opened" not in done.stdout


def test_importing_the_package_loads_neither_ctypes_binding_nor_its_library():
    done = run("""
        import sys
        print([name for name in sys.modules if "litevfs.bindings.sqlite3" in name], litevfs.last_error())
    """)
    assert done.stdout == "[] None\n"


def test_a_killed_process_leaves_no_file_and_the_next_one_reads_right(tmp_path):
    """SIGKILL amid statements, of connections that share a cache on disk, with sorters and FIFOs in use."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    head = f"import litevfs, sqlite3, threading\nurl = {str(ORDERS)!r}\n" + textwrap.dedent(f"""
        con = [litevfs.connect_stdlib(url, cache_dir={str(tmp_path / "cache")!r}, cache_size=0) for _ in range(8)]
        cursors = [one.execute("SELECT note, random() AS r FROM orders ORDER BY r, note") for one in con]
        rows = [next(cursor) for cursor in cursors]
        print("ready", flush=True)
        while True:
            for one in con:
                one.execute("SELECT count(note), sum(total_cents) FROM orders").fetchall()
    """)
    environment = os.environ | {"TMPDIR": str(folder), "SQLITE_TMPDIR": str(folder)}
    for wait_s in (0, 0.02):
        with subprocess.Popen(
            [sys.executable, "-c", head], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            threading.Event().wait(wait_s)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert list(folder.iterdir()) == []
    done = run(f"""
        con = litevfs.connect_stdlib(url, cache_dir={str(tmp_path / "cache")!r})
        print(con.execute("SELECT count(*), sum(total_cents) FROM orders").fetchone())
        print(con.execute("PRAGMA integrity_check").fetchone())
    """)
    assert done.stdout == "(2667, 121035373)\n('ok',)\n"

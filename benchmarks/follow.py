"""A local file that follows a replica, beside `litestream restore -f`, in one run: lag, cost, and what readers see.

    python benchmarks/follow.py [--small] [--folder] [--transactions N] [--json FILE]

A primary commits to a database, with a VACUUM now and then; `litevfs.Replicator` uploads every few transactions to an
S3 server (--folder: into a folder, where no request is counted). Both programs keep a file of their own current from
it, looking ten times a second, each through a proxy that counts. Readers of each file, in processes of their own, look
at a ledger by plain `sqlite3`, and check the whole file now and then: some keep their connection, others open one for
each look. On an S3 server `litestream restore -f` has two files, since a reader that keeps its connection to one of
them ("kept") can hold up everything else there. In the first part nothing disturbs the followers, and lag and cost are
measured. In the second part both are killed by SIGKILL again and again: litevfs at every step of a transaction,
litestream at random moments.
litestream is left out where it is not on the PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
from _competitors import clean_environment
from _results import seconds

import litevfs
from litevfs.testing.s3_proxy import HTTPProxy, running_s3_proxy
from litevfs.testing.s3_server import S3Server, running_s3_server

TRANSACTIONS = 3_000
TRANSACTIONS_A_SYNC = 3
QUIET_SHARE = 0.2
"""Part of the transactions in which no follower is killed."""
ROWS = 1_500
MOVES = 8
"""Movements of money in a transaction."""
VACUUM_EVERY = 500
INTERVAL_S = 0.1
KILL_EVERY_S = 0.4
"""Pause between two kills of litestream, on average."""
PAUSE_S = 0.06
"""Pause after each upload while followers are killed: each needs time to start, and to come to the step it ends at."""
COLUMNS = (
    ("litevfs", "litevfs", (True, False)),
    ("litestream", "litestream", (False, False)),
    ("litestream, kept", "litestream", (True,)),
)
"""(name, program, whether each reader keeps its connection)."""
LEVELS = {1: 3.0, 2: 30.0}  # compaction, s: often, since many transactions come in short time
SNAPSHOT_EVERY_S = 60.0
CATCH_UP_S = 20.0
"""How long the last transaction may take to arrive in both files."""
BUCKET, PATH = "follow", "app"
FOLDER = Path(__file__).resolve().parent


@dataclass
class Followed:
    """One program's file, and the processes around it."""

    name: str  # of a column
    program: str
    readers_keep: tuple[bool, ...]  # their connections
    url: str
    path: Path
    proxy: HTTPProxy | None  # counts
    readers: list[subprocess.Popen[str]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    kills: int = 0
    failed_starts: int = 0
    requests: int = 0  # in the quiet part
    read_bytes: int = 0
    missing: int = 0  # transactions that a connection opened at the end does not see
    is_sound: bool = False  # what an integrity check says at the end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--folder", action="store_true", help="a replica in a folder, not on an S3 server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there, too")
    parser.add_argument("--transactions", type=int, metavar="N")
    arguments = parser.parse_args()
    count = arguments.transactions or (60 if arguments.small else TRANSACTIONS)
    with tempfile.TemporaryDirectory(prefix="litevfs-bench-") as folder:
        followed, seconds = run(Path(folder), count, in_folder=arguments.folder)
    print(f"{count} transactions in {seconds:.0f} s, the first {count * QUIET_SHARE:.0f} without kills")
    results = [result_of(one, count) for one in followed]
    for name in results[0]:
        print(f"{name:26}", *(f"{result[name]!s:>18}" for result in results))
    for one in followed:
        errors = {text for answer in one.answers for text in answer["errors"]}
        print(f"errors of {one.name}'s readers: {', '.join(sorted(errors)) or 'none'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def run(folder: Path, count: int, *, in_folder: bool) -> tuple[list[Followed], float]:
    """Everything; returns what was counted, and how long the transactions took, seconds."""
    control, database = folder / "control", folder / "app.db"
    control.write_text("quiet")
    with ExitStack() as stack:
        storage = FolderStorage(folder / "replica") if in_folder else stack.enter_context(s3_storage())
        os.environ.update(storage.environment)
        application = stack.enter_context(closing(make_database(database)))
        replicator = stack.enter_context(
            litevfs.Replicator(
                database,
                storage.url,
                sync_interval_s=3600,
                lease_ttl_s=None,
                maintenance=litevfs.MaintenanceConfig(levels=LEVELS, snapshot_interval_s=SNAPSHOT_EVERY_S),
            )
        )
        replicator.sync()
        replicator.start()
        followed = []
        for name, program, readers_keep in COLUMNS[: 2 if in_folder else 3]:
            if shutil.which(program) is None and program != "litevfs":
                print(f"{name} is left out: {program} is not on the PATH")
                continue
            url, proxy = stack.enter_context(storage.counted())
            one = Followed(name, program, readers_keep, url, folder / f"{name}.db", proxy)
            followed.append(one)
            stack.enter_context(running(one, control, clean_environment() | storage.environment))
        for one in followed:
            wait_for_file(one.path)
            start_readers(one, control)
            if one.proxy is not None:
                one.proxy.clear()
        began = time.monotonic()
        for number in range(1, count + 1):
            if number == int(count * QUIET_SHARE):
                note_cost(followed)
                control.write_text("kills")
            commit(application, number)
            if number % TRANSACTIONS_A_SYNC == 0 or number == count:
                replicator.sync()
                time.sleep(PAUSE_S if number >= int(count * QUIET_SHARE) else 0)
        seconds = time.monotonic() - began
        control.write_text("quiet again")  # a follower goes on from where the last kill left it
        wait_until_all_is_there(followed, count)
        control.write_text("stop")
        for one in followed:
            one.answers = [json.loads(reader.communicate(timeout=120)[0]) for reader in one.readers]
    for one in followed:
        look_at_the_end(one, count)
    return followed, seconds


# --- storages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderStorage:
    """A replica in a folder."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    @contextmanager
    def counted(self) -> Iterator[tuple[str, None]]:
        yield self.url, None


@dataclass(frozen=True)
class S3Storage:
    """A replica on an S3 server."""

    server: S3Server

    @property
    def environment(self) -> dict[str, str]:
        return self.server.environment()

    @property
    def url(self) -> str:
        return self.server.url(BUCKET, PATH)

    @contextmanager
    def counted(self) -> Iterator[tuple[str, HTTPProxy]]:
        """A URL that leads through a proxy."""
        with running_s3_proxy(self.server.endpoint) as proxy:
            yield self.server.url(BUCKET, PATH, endpoint=proxy.endpoint), proxy


@contextmanager
def s3_storage() -> Iterator[S3Storage]:
    with running_s3_server() as server:
        with closing(server.boto3_client()) as client:
            client.create_bucket(Bucket=BUCKET)
        yield S3Storage(server)


# --- the primary ------------------------------------------------------------------------------------------------------


def make_database(path: Path) -> apsw.Connection:
    application = apsw.Connection(str(path))
    application.pragma("journal_mode", "wal")
    application.execute(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, cents, filler); CREATE INDEX by_cents ON account (cents);"
        "CREATE TABLE note (id INTEGER PRIMARY KEY, at, filler)"
    ).fetchall()
    with application:
        rows = ((n,) for n in range(1, ROWS + 1))
        application.executemany("INSERT INTO account VALUES (?, 0, randomblob(200))", rows)
        application.execute("INSERT INTO note VALUES (1, ?, NULL)", (time.time(),))
    return application


def commit(application: apsw.Connection, number: int) -> None:
    """Move money between accounts all over the table and note when; make the file smaller and larger now and then."""
    if number % VACUUM_EVERY == 0:
        application.execute("VACUUM")
    with application:
        if number % 100 == 0:
            application.execute("UPDATE note SET filler = NULL")
        for _ in range(MOVES):
            a, b = random.sample(range(1, ROWS + 1), 2)
            application.execute("UPDATE account SET cents = cents - 1, filler = randomblob(200) WHERE id = ?", (a,))
            application.execute("UPDATE account SET cents = cents + 1 WHERE id = ?", (b,))
        application.execute("INSERT INTO note (at, filler) VALUES (?, randomblob(2000))", (time.time(),))


# --- followers --------------------------------------------------------------------------------------------------------


@contextmanager
def running(one: Followed, control: Path, environment: dict[str, str]) -> Iterator[None]:
    """The follower, in processes of its own, until CONTROL says stop or the block ends."""
    if one.program == "litevfs":
        command = [sys.executable, str(FOLDER / "_follow_killed.py"), one.url, str(one.path), str(control)]
        process = subprocess.Popen([*command, str(INTERVAL_S)], stdout=subprocess.PIPE, text=True, env=environment)
        try:
            yield
        finally:
            control.write_text("stop")
            one.kills = int(process.communicate(timeout=60)[0] or -1)
    else:
        thread = threading.Thread(target=keep_litestream, args=(one, control, environment))
        thread.start()
        try:
            yield
        finally:
            control.write_text("stop")
            thread.join()


def keep_litestream(one: Followed, control: Path, environment: dict[str, str]) -> None:
    """Run `litestream restore -f`, kill it at random moments while CONTROL says kills, and start it again."""
    options = ["-f", "-follow-interval", f"{INTERVAL_S * 1000:.0f}ms", "-o", str(one.path)]
    log = one.path.with_suffix(".log").open("w")
    with log:
        while (phase := control.read_text()) != "stop":
            command = ["litestream", "restore", *options, one.url]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            until = time.monotonic() + random.random() * 2 * KILL_EVERY_S
            while control.read_text() == phase and process.poll() is None:
                if phase == "kills" and time.monotonic() > until:
                    break
                time.sleep(0.02)
            one.failed_starts += process.poll() is not None
            one.kills += phase == "kills"
            process.kill()  # a reader in its way keeps it from ending on SIGTERM
            process.wait()


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size):
        if time.monotonic() > deadline:
            raise SystemExit(f"{path.name} did not appear")
        time.sleep(0.05)


# --- what is counted --------------------------------------------------------------------------------------------------


def start_readers(one: Followed, control: Path) -> None:
    """Of a file that litestream follows, as its manual says, read-only; of litevfs' one, as any program opens it."""
    mode = "rw" if one.program == "litevfs" else "ro"
    for keeps in one.readers_keep:
        arguments = [str(one.path), str(control), "keeps" if keeps else "opens", mode]
        command = [sys.executable, str(FOLDER / "_follow_reader.py"), *arguments]
        one.readers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))


def note_cost(followed: list[Followed]) -> None:
    for one in followed:
        if one.proxy is not None:
            one.requests, one.read_bytes = len(one.proxy.requests), one.proxy.answered_bytes


def wait_until_all_is_there(followed: list[Followed], count: int) -> None:
    """Until the first two files hold the last transaction, or for CATCH_UP_S."""
    deadline = time.monotonic() + CATCH_UP_S
    while time.monotonic() < deadline and any(missing_in(one, count) for one in followed[:2]):
        time.sleep(0.2)


def missing_in(one: Followed, count: int) -> int:
    """How many transactions a new connection does not see."""
    mode = "rw" if one.program == "litevfs" else "ro"
    try:
        with closing(sqlite3.connect(f"file:{one.path}?mode={mode}", uri=True, timeout=30)) as connection:
            return int(count + 1 - (connection.execute("SELECT max(id) FROM note").fetchone()[0] or 0))
    except sqlite3.DatabaseError:
        return count + 1


def look_at_the_end(one: Followed, count: int) -> None:
    one.missing = missing_in(one, count)
    try:
        with closing(sqlite3.connect(one.path, timeout=30)) as connection:
            one.is_sound = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except sqlite3.DatabaseError as error:
        print(f"{one.name}'s file at the end: {error}")


def result_of(one: Followed, count: int) -> dict[str, Any]:
    quiet = int(count * QUIET_SHARE)
    lags = sorted(lag for answer in one.answers for lag in answer["lags"])
    result: dict[str, Any] = {"": one.name}
    result["readers"] = " + ".join("keeps" if keeps else "opens" for keeps in one.readers_keep)
    for what in ("looks", "states", "checks", "torn", "back", "corrupt"):
        result[what] = sum(answer.get(what, 0) for answer in one.answers)
    for what in ("torn", "back", "corrupt"):
        result[f"{what}, before any kill"] = sum(answer.get(f"{what} quiet", 0) for answer in one.answers)
    result["errors"] = sum(sum(answer["errors"].values()) for answer in one.answers)
    result["lags"] = len(lags)
    result["lag, median"] = seconds(statistics.median(lags) if lags else None)
    result["lag, 95 %"] = seconds(lags[int(len(lags) * 0.95)] if lags else None)
    if one.proxy is not None:
        result["requests a transaction"] = f"{one.requests / quiet:.2f}"
        result["bytes read a transaction"] = f"{one.read_bytes / quiet:.0f}"
    result["kills"] = one.kills
    result["starts that failed"] = one.failed_starts
    result["missing at the end"] = one.missing
    result["integrity check at the end"] = "ok" if one.is_sound else "FAILED"
    return result


if __name__ == "__main__":
    sys.exit(main())

"""What replicating costs the application, how late a reader sees a commit, and what is uploaded for what was changed.

    python benchmarks/replicate.py [--small] [--json FILE]

`litevfs replicate`, the application and the reader are processes of their own, as their users run them; Litestream
takes its turn where `litestream` is on the PATH. Storage is a folder, and MinIO where there is one. Rounds with and
without a replicator alternate, each on a fresh copy of one database; after each, the replica is compared with the
database. Times are never asserted. Goal: the application loses less than 5 % of its throughput.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import apsw
import psutil
from _replicators import (
    APPLICATION,
    OURS,
    RIVAL,
    answer,
    cpu_seconds,
    end_by_signal,
    replicate_command,
    running,
    writer,
)
from _results import Result, Samples, parse_arguments, print_table, seconds, write_json

import litevfs
from litevfs.ltx import decode_file
from litevfs.replica_clients.base import SNAPSHOT_LEVEL, ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.s3_server import find_minio, running_s3_server

GOAL_LOSS = 0.05
PACE = 200  # transactions a second: an application that is busy, but not with writing alone
ALONE = "alone"
CPU = "replicator's CPU"
FOLDER, MINIO = "folder", "MinIO"
FASTEST, BURST, PACED = "as fast as it can", "the first second after idling", f"{PACE} tx/s"
PACES = (FASTEST, BURST, PACED)
LAG_SYNC_INTERVALS_S = (1.0, 0.1)
POLL_INTERVAL_S = 0.1
BUCKET = "bench"
Round = tuple[Path, psutil.Process | None]  # the database, and who replicates it
CHECK = "SELECT count(*), sum(amount), sum(customer), max(committed_ns) FROM orders"
SETTLE_TIMEOUT_S = 30.0
SNAPSHOT_WAIT_S = 3.0
"""For the first snapshot, so that it is not made while we measure. Not all take one at once."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    rows: int  # in the database to begin with
    warm_up_s: float
    write_s: float  # of a round; 1 s of a burst
    lag_s: float  # of each measurement of lag
    rounds: Mapping[str, tuple[int, int, int]]  # by storage, then as in PACES


FULL = Scale(50_000, 1.0, 5.0, 10.0, {FOLDER: (6, 6, 2), MINIO: (3, 3, 1)})
SMALL = Scale(2_000, 0.2, 0.5, 0.5, {FOLDER: (1, 1, 1), MINIO: (1, 0, 0)})


@dataclass(frozen=True, slots=True)
class Storage:
    """Where replicas go."""

    name: str
    environment: Mapping[str, str]
    url: Callable[[Path], str]  # of the replica for the round that works in this folder


@dataclass(slots=True)
class Uploads:
    """What went to level 0, without the first file, which is the whole database. Sizes in bytes."""

    files: int = 0
    uploaded: int = 0
    changed: int = 0  # the pages in the files: those that changed since the file before
    wal: int = 0  # the frames they come from; a page can be in several
    wholes: int = 0  # files that were not made from the WAL: the whole database again

    def __iadd__(self, other: Uploads) -> Uploads:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        return self


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and on what."""

    folder: Path
    database: Path  # the one that each round copies
    scale: Scale
    replicators: list[str]
    samples: Samples = field(default_factory=Samples)
    uploads: dict[tuple[str, str], Uploads] = field(default_factory=dict)  # by case and replicator

    def throughput(self, storage: Storage, pace: str) -> None:
        """Rounds with and without a replicator, in turn. Who is first changes each time."""
        case = f"{pace}, {storage.name}"
        turns = [ALONE, *self.replicators]
        for number in range(self.scale.rounds[storage.name][PACES.index(pace)]):
            for name in turns if number % 2 == 0 else turns[::-1]:
                print(f"{case}: round {number + 1}, {name}", file=sys.stderr)
                self._write(storage, case, pace, name)

    def _write(self, storage: Storage, case: str, pace: str, name: str) -> None:
        rate = PACE if pace == PACED else 0
        warm_up_s, write_s = (0, 1) if pace == BURST else (self.scale.warm_up_s, self.scale.write_s)
        with (
            self._round(storage, case, name, sync_interval_s=1.0) as (database, replicator),
            running(writer(database, rate, warm_up_s, write_s)) as process,
        ):
            answer(process)
            cpu, start = cpu_seconds(replicator), time.monotonic()
            result = answer(process)
            cpu = (cpu_seconds(replicator) - cpu) / (time.monotonic() - start)
        for key in ("a_second", "a_scheduled_second", "cpu_a_transaction", "median", "p99", "worst"):
            self.samples.add(f"{case}: {key}", name, result[key])
        self.samples.add(f"{case}: {CPU}", name, cpu)

    def lag(self, storage: Storage, name: str, sync_interval_s: float) -> None:
        """How long after a commit a reader in another process sees it."""
        case = lag_case(storage.name, sync_interval_s)
        print(f"{case}, {name}", file=sys.stderr)
        with self._round(storage, case, name, sync_interval_s) as (database, _):
            url = storage.url(database.parent)
            reader = [str(APPLICATION), "read", url, "--poll-interval", f"{POLL_INTERVAL_S}s"]
            writes = writer(database, PACE, self.scale.warm_up_s, self.scale.lag_s)
            with running(reader, storage.environment) as process:
                answer(process)  # it sees the first row only if it is there before the writer
                with running(writes) as writing:
                    answer(writing)
                    assert process.stdin is not None
                    print(answer(writing)["last"], file=process.stdin, flush=True)
                    result = answer(process)
        for key in ("median", "p99", "worst"):
            self.samples.add(f"{case}: {key}", name, result[key])

    @contextmanager
    def _round(self, storage: Storage, case: str, name: str, sync_interval_s: float) -> Iterator[Round]:
        """A fresh database and, if `name` says so, its replicator; looks at the replica in the end."""
        with tempfile.TemporaryDirectory(prefix="round-", dir=self.folder) as folder:
            database = Path(folder, "app.db")
            shutil.copyfile(self.database, database)
            os.sync()  # what earlier rounds left to write is not this round's
            if name == ALONE:
                yield database, None
                return
            url = storage.url(database.parent)
            with closing(open_replica_client(url)) as client:
                command = replicate_command(name, database, url, sync_interval_s)
                with running(command, storage.environment) as process:
                    wait_until_settled(client, process)
                    yield database, psutil.Process(process.pid)
                    end_by_signal(process, name)
                compare(database, url, name)
                uploads = self.uploads.setdefault((case, name), Uploads())
                uploads += uploaded(client)


def lag_case(storage: str, sync_interval_s: float) -> str:
    """What the table calls it."""
    return f"sync {sync_interval_s:g} s, {storage}"


# --- the replica ------------------------------------------------------------------------------------------------------


def wait_until_settled(client: ReplicaClient, process: subprocess.Popen[str]) -> None:
    """Until the whole database is on the replica, and a snapshot of it too if that comes soon."""
    for level, timeout_s, needed in ((0, SETTLE_TIMEOUT_S, True), (SNAPSHOT_LEVEL, SNAPSHOT_WAIT_S, False)):
        deadline = time.monotonic() + timeout_s
        while not list_files(client, level) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if needed and not list_files(client, level):
            raise RuntimeError(f"{process.args!r} does not replicate")


def list_files(client: ReplicaClient, level: int) -> list[Any]:
    try:
        return client.list_files(level)
    except FileNotFoundError:
        return []


def uploaded(client: ReplicaClient) -> Uploads:
    """What is on level 0 after the first file, which is all that went there: no file is old enough to be deleted."""
    total = Uploads()
    for info in list_files(client, 0)[1:]:
        file = decode_file(client.read(info, 0, info.size))
        pages = len(file.index.pgnos)
        total += Uploads(1, info.size, pages * file.header.page_size, file.header.wal_size, file.header.wal_size == 0)
    return total


def compare(database: Path, url: str, name: str) -> None:
    """The replica has what the database has, or the measurement means nothing. Raises AssertionError."""
    with closing(apsw.Connection(str(database))) as connection:
        expected = connection.execute(CHECK).get
    with closing(litevfs.connect(url, poll_interval=0)) as connection:
        found = connection.execute(CHECK).get
    if found != expected:
        raise AssertionError(f"{name}: the replica says {found}, the database {expected}")


def find_storages(stack: ExitStack) -> Iterator[Storage]:
    """A folder, and MinIO where there is one."""
    yield Storage(FOLDER, {}, lambda folder: f"file://{folder}/replica")
    if find_minio() is None:
        print("without S3: there is no MinIO")
        return
    server = stack.enter_context(running_s3_server())
    with closing(server.boto3_client()) as client:
        client.create_bucket(Bucket=BUCKET)
    os.environ.update(server.environment())  # for the clients in this process
    yield Storage(MINIO, server.environment(), lambda folder: server.url(BUCKET, folder.name))


# --- tables -----------------------------------------------------------------------------------------------------------


def pair_ratios(bench: Bench, case: str, name: str) -> list[float]:
    """Of each round: what was measured with the replicator, as a multiple of what was measured without."""
    values = bench.samples.all[case]
    return [ours / alone for ours, alone in zip(values[name], values[ALONE], strict=True)]


def throughput_results(bench: Bench, *, small: bool) -> list[Result]:
    """Throughput with its goal, then what may explain it."""
    shown: dict[str, tuple[str, Callable[[float | None], str]]] = {
        "a_second": ("transactions a second", lambda value: f"{value or 0:,.0f}"),
        "a_scheduled_second": ("the same, of the time it has a CPU", lambda value: f"{value or 0:,.0f}"),
        "cpu_a_transaction": ("application's CPU a transaction", seconds),
        "median": ("transaction, median", seconds),
        "p99": ("transaction, p99", seconds),
        "worst": ("transaction, worst", seconds),
        CPU: ("replicator's CPU, of one core", lambda value: "" if value is None else f"{value:.1%}"),
    }
    rows = []
    for name, samples in bench.samples.all.items():
        case, _, key = name.partition(": ")
        if ALONE not in samples:
            continue
        label, text = shown[key]
        values = {who: text(bench.samples.median(name, who)) for who in samples}
        if key == CPU:
            values[ALONE] = ""
        else:
            values |= {f"{who}/{ALONE}": ratios_text(pair_ratios(bench, name, who)) for who in bench.replicators}
        result = Result(f"{case}: {label}", values, samples=samples)
        if key == "a_second":
            met = None if small else median(pair_ratios(bench, name, OURS)) > 1 - GOAL_LOSS
            result = replace(result, goal=f"loses < {GOAL_LOSS:.0%}", met=met)
        rows.append(result)
    return rows


def ratios_text(ratios: list[float]) -> str:
    return f"{median(ratios):.3f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def lag_results(bench: Bench, storages: list[Storage]) -> list[Result]:
    """Beside what the two intervals add up to: half of each on average, both at worst, if all else took no time."""
    rows = []
    for storage in storages:
        for sync_interval_s in LAG_SYNC_INTERVALS_S:
            case = lag_case(storage.name, sync_interval_s)
            intervals_s = sync_interval_s + POLL_INTERVAL_S
            for key, configured_s in (("median", intervals_s / 2), ("p99", intervals_s), ("worst", intervals_s)):
                values = {"intervals alone": seconds(configured_s)}
                values |= {who: seconds(bench.samples.median(f"{case}: {key}", who)) for who in bench.replicators}
                rows.append(Result(f"{case}: {key}", values, samples=bench.samples.all[f"{case}: {key}"]))
    return rows


def upload_results(bench: Bench) -> list[Result]:
    rows = []
    for (case, who), uploads in bench.uploads.items():
        if not uploads.files:
            continue
        values = {
            "files": str(uploads.files),
            "uploaded a file": f"{uploads.uploaded / uploads.files / 1e3:,.0f} kB",
            "/changed pages": f"{uploads.uploaded / uploads.changed:.2f}x",
            "/WAL": f"{uploads.uploaded / uploads.wal:.3f}x" if uploads.wal else "-",
            "whole database again": str(uploads.wholes) if who == OURS else "",
        }
        rows.append(Result(f"uploads: {case}, {who}", values, samples=asdict(uploads)))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    scale = SMALL if arguments.small else FULL
    replicators = [OURS, RIVAL] if shutil.which(RIVAL) else [OURS]
    if RIVAL not in replicators:
        print("without Litestream: there is no `litestream` on the PATH")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litevfs-bench-")))
        bench = Bench(folder, folder / "template.db", scale, replicators)
        with running([str(APPLICATION), "make", str(bench.database), "--rows", str(scale.rows)]) as process:
            answer(process)
        storages = list(find_storages(stack))
        for storage in storages:
            for pace in PACES:
                bench.throughput(storage, pace)
            for sync_interval_s in LAG_SYNC_INTERVALS_S:
                for name in replicators:
                    bench.lag(storage, name, sync_interval_s)
    written = throughput_results(bench, small=arguments.small)
    print_table("Throughput of the application, rounds with a replicator / the same rounds without", written)
    lags = lag_results(bench, storages)
    print_table(f"From commit to visible, {PACE} transactions a second, poll {POLL_INTERVAL_S:g} s", lags)
    uploads = upload_results(bench)
    print_table("Uploads to level 0", uploads)
    write_json("Replication", [*written, *lags, *uploads], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Application, replicator and reader in processes of their own: load, SIGKILL, Litestream's own reader."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from litevfs.errors import ReplicaFolderNotFoundError
from litevfs.ltx.decoder import decode_file
from litevfs.operations.restore import restore
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from tests.replicate.programs import create
from tests.replicate.support import assert_replicated, files_of, opened, rebuilt, source_bytes, states
from tests.support import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@contextmanager
def program(*arguments: object, **environment: str):
    """One of `programs.py`, killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.replicate.programs", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> list[str]:
    """Ask a program to end and take the lines it has printed."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.splitlines()


def file_count(client: FileReplicaClient) -> int:
    return len(client.list_files(0)) if client.root.exists() else 0


def assert_every_state_is_sound(client: FileReplicaClient) -> None:
    """At every single TXID: a sound database in which the balances add up, and the ledger never goes back."""
    ledger = 0
    for txid, data in states(files_of(client)):
        db = opened(data)
        assert db.execute("SELECT sum(balance) FROM accounts").fetchone() == (1000,), f"TXID {txid}"
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], f"TXID {txid}"
        n = db.execute("SELECT n FROM ledger").fetchone()[0]
        assert n >= ledger
        ledger = n
        db.close()


def assert_the_states_of_a_place_are_sound(client: FileReplicaClient) -> None:
    """As above, for a place that begins again with the whole database wherever TXIDs are left out."""
    pages: dict[int, bytes] = {}
    txid, ledger = 0, -1
    for info in client.list_files(0):
        file = decode_file(client.read(info))
        changed = dict(file.pages())
        assert info.min_txid == txid + 1 or len(changed) == file.header.commit, f"TXID {info.min_txid}"
        txid = info.max_txid
        pages = {pgno: page for pgno, page in (pages | changed).items() if pgno <= file.header.commit}
        with closing(opened(b"".join(page for _, page in sorted(pages.items())))) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], f"TXID {txid}"
            n = db.execute("SELECT n FROM ledger").fetchone()[0]
        assert n >= ledger, f"TXID {txid}"
        ledger = n


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(str(path))
    return path


@pytest.mark.plan("K03")
def test_under_load_every_txid_is_a_state_of_the_source_and_the_application_hardly_waits(database, client):
    with program("write", database, 1) as writer, program("replicate", database, client.url) as replicator:
        wait_until(lambda: replicator.poll() is not None or file_count(client) >= 60, timeout_s=60)
        count, longest = ended(writer)[-1].split()
        *_, txid, status = ended(replicator)
    snapshots, _, reason = status.partition(" ")
    assert reason == "the first sync" if snapshots == "1" else "started over" in reason
    assert float(longest) < 3
    assert int(txid) == len(client.list_files(0))
    assert_every_state_is_sound(client)
    assert_replicated(client, database)
    with closing(opened(rebuilt(client))) as db:
        assert db.execute("SELECT n FROM ledger").fetchone() == (int(count),)


PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
KILLS = [
    *((512, 2), (65536, 2)),
    *(pytest.param(page_size, 20, marks=pytest.mark.soak) for page_size in PAGE_SIZES),
]


@pytest.mark.plan("D15", "K03")
@pytest.mark.parametrize(("page_size", "kills"), KILLS)
def test_killed_at_random_moments_nothing_acknowledged_is_lost_and_nothing_is_corrupt(
    tmp_path, client, page_size: int, kills: int
):
    database = tmp_path / "app.db"
    create(str(database), page_size=page_size)
    rng = random.Random(15)
    with program("write", database, 2) as writer:
        for kill in range(kills):
            before = file_count(client)
            with program("replicate", database, client.url) as replicator:
                assert replicator.stdout.readline() == "started\n"
                delay = time.monotonic() + rng.choice([0.0, 0.01, 0.05, 0.2]) * rng.random()
                wait_until(lambda delay=delay: time.monotonic() >= delay)
                replicator.kill()
                acknowledged = replicator.communicate()[0].split()
            assert file_count(client) >= max(before, *map(int, acknowledged or [0])), f"kill {kill}"
        ended(writer)
    with Replicator(database, client) as replicator:
        replicator.sync()
    assert len(client.list_files(0)) > (5 if kills == 20 else 0)
    assert_every_state_is_sound(client)
    assert_replicated(client, database)


@pytest.mark.plan("D15", "K03")
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments_every_place_has_what_was_acknowledged(tmp_path, kills: int):
    database, urls = tmp_path / "app.db", [(tmp_path / name).as_uri() for name in ("a", "b", "c")]
    create(str(database))
    rng = random.Random(kills)
    clients = [FileReplicaClient(tmp_path / name) for name in ("a", "b", "c")]
    with program("write", database, 3) as writer:
        for kill in range(kills):
            chosen = rng.sample(range(3), rng.choice([2, 3, 3]))
            with program("replicate", database, *(urls[number] for number in chosen)) as replicator:
                assert replicator.stdout.readline() == "started\n"
                delay = time.monotonic() + rng.choice([0.05, 0.2, 0.5]) * rng.random()
                wait_until(lambda delay=delay: time.monotonic() >= delay)
                replicator.kill()
                acknowledged = max(map(int, replicator.communicate()[0].split() or [0]))
            for number in chosen:
                there = []
                with contextlib.suppress(ReplicaFolderNotFoundError):  # killed before its first file came there
                    there = [file.max_txid for level in (0, 9) for file in clients[number].list_files(level)]
                assert max([0, *there]) >= acknowledged, f"kill {kill}"
        ended(writer)
    with Replicator(database, clients[0], places=clients[1:]) as replicator:
        replicator.sync()
    for client in clients:
        restore(client, path := tmp_path / "restored.db", integrity_check=True)
        assert path.read_bytes() == source_bytes(database)
        path.unlink()
        assert_the_states_of_a_place_are_sound(client)
        client.close()


@pytest.mark.peer
def test_litestreams_own_reader_sees_the_same_rows(make_app, client, replicate):
    pytest.importorskip("litestream_vfs")
    app = make_app(auto_vacuum=2)
    replicator = replicate(app)
    app.insert(20, 3000)
    replicator.sync()
    app.insert(20, 3000)
    replicator.sync()
    assert_litestream_reads(client, app, check=["ok"])
    replicator.close()
    app.insert(5)
    app.checkpoint("TRUNCATE")
    app.insert(5)
    replicator = replicate(app)
    replicator.sync()
    assert replicator.status.comparisons == 1
    assert_litestream_reads(client, app, check=["ok"])
    replicator.request_snapshot()
    replicator.sync()
    assert replicator.status.snapshots == 1
    assert_litestream_reads(client, app, check=["ok"])
    app.execute("DELETE FROM t WHERE id > 20")
    app.execute("PRAGMA incremental_vacuum")
    replicator.sync()
    assert_litestream_reads(client, app)  # it takes the size from pages that are gone, so its own check complains
    app.insert(100, 3000)
    replicator.sync()
    assert_litestream_reads(client, app, check=["ok"])


def assert_litestream_reads(client: FileReplicaClient, app, check: list[str] | None = None) -> None:
    environment = {"LITESTREAM_REPLICA_URL": client.url, "LITESTREAM_LOG_LEVEL": "ERROR", "AWS_CA_BUNDLE": ""}
    with program("read_with_litestream", **environment) as reader:
        rows, *checked = ended(reader)
    assert rows == repr(app.execute("SELECT id, hex(data) FROM t ORDER BY id"))
    assert check is None or checked == check

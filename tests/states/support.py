"""What tests of a follower share."""

from __future__ import annotations

from litevfs.live.replica import Replica
from litevfs.ltx.names import format_file_name
from tests.made import MadePrimary
from tests.primary import Primary
from tests.scripted import Script


def pages_are_right(primary: Primary | MadePrimary, replica: Replica) -> bool:
    """Whether every page of the published state is what the primary had at that TXID."""
    snapshot = replica.snapshot
    assert snapshot is not None
    image = primary.images[snapshot.txid]
    assert snapshot.commit * snapshot.page_size == len(image)
    return all(
        replica.pages.read(snapshot, pgno) == primary.page(pgno, snapshot.txid)
        for pgno in range(1, snapshot.commit + 1)
    )


def published(replica: Replica) -> bytes:
    """All pages of the published state."""
    snapshot = replica.snapshot
    assert snapshot is not None
    return b"".join(replica.pages.read(snapshot, pgno) for pgno in range(1, snapshot.commit + 1))


INSERT = "INSERT INTO t VALUES(randomblob(3000))"


def insert(primary: Primary, times: int = 1, *, upload: bool = True) -> int:
    """Commit so many transactions; returns the last TXID."""
    for _ in range(times):
        primary.commit(INSERT) if upload else primary.run(INSERT)
    return primary.txid


def in_its_place(
    primary: Primary, script: Script, txid: int, *, start_ms: int | None = None, blob_bytes: int = 20_000
) -> Primary:
    """Delete the files of `primary`; returns another database that is at `txid`, a younger one by default, whose files
    are not uploaded yet.
    """
    primary.delete_all()
    other = Primary(script.writer)
    other.start_ms = primary.timestamp_ms(100) if start_ms is None else start_ms
    other.run(f"CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob({blob_bytes}) AS b")
    while other.txid < txid:
        other.run(INSERT)
    return other


def put(script: Script, txid: int, data: bytes) -> None:
    script.store.put(f"0/{format_file_name(txid, txid)}", data, 0)

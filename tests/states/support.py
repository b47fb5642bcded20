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


INSERT = "INSERT INTO t VALUES(randomblob(3000))"


def insert(primary: Primary, *, upload: bool = True) -> int:
    return primary.commit(INSERT) if upload else primary.run(INSERT)


def put(script: Script, txid: int, data: bytes) -> None:
    script.store.put(f"0/{format_file_name(txid, txid)}", data, 0)

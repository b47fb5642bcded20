"""The way around unusable files is one: the same damaged replicas, read by a reader, restored, compacted.

Each job makes the right state where other files hold the transactions, or names the file and the state before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from litevfs.errors import LitevfsError, LTXChecksumError, LTXFormatError, StorageNotFoundError, TransientStorageError
from litevfs.files.detours import Detours
from litevfs.files.plan import newest_state
from litevfs.live.replica import Replica
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.operations.restore import restore
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from tests.histories import History, image_after

Place = tuple[int, int, int]
"""Level, min_txid, max_txid."""

# --- which files a plan leaves out ------------------------------------------------------------------------------------


def file(level: int, min_txid: int, max_txid: int) -> LTXFileInfo:
    return LTXFileInfo(level, min_txid, max_txid, size=100, modified_ms=0)


def about(place: LTXFileInfo, kind: type[LitevfsError] = LTXChecksumError) -> LitevfsError:
    return kind("unusable", level=place.level, min_txid=place.min_txid, max_txid=place.max_txid)


FILES = [file(0, 1, 1), file(0, 2, 2), file(1, 1, 2), file(0, 3, 3)]


@pytest.mark.parametrize("kind", [LTXChecksumError, StorageNotFoundError])
def test_the_way_around_a_file_is_the_plan_without_it(kind):
    detours = Detours()
    assert not detours
    assert detours.usable(FILES) == FILES
    detours.leave_out(about(FILES[1], kind), FILES, 3)
    assert detours
    assert detours.usable(FILES) == [FILES[0], FILES[2], FILES[3]]
    assert newest_state(detours.usable(FILES)).txid == 3
    assert detours.usable([*FILES, file(1, 3, 3)])[-2:] == [file(0, 3, 3), file(1, 3, 3)]  # of a later listing, too


def test_there_is_no_way_around_a_file_that_others_do_not_make_up_for():
    detours = Detours()
    with pytest.raises(LTXChecksumError) as caught:
        detours.leave_out(about(FILES[3]), FILES, 3)
    assert caught.value.hint == f"the state before can be opened with txid={2:016x}"
    assert detours.usable(FILES) == FILES
    detours.leave_out(about(FILES[3]), FILES, 2)
    assert detours.usable(FILES) == FILES[:3]


def test_the_files_left_out_before_do_not_lead_anywhere():
    detours = Detours()
    detours.leave_out(about(FILES[1]), FILES, 3)
    with pytest.raises(LTXChecksumError):
        detours.leave_out(about(FILES[2]), FILES, 3)


@pytest.mark.parametrize(
    "error",
    [about(file(0, 9, 9)), about(file(2, 1, 2)), LTXChecksumError("about no file"), StorageNotFoundError("gone")],
)
def test_an_error_about_no_listed_file_is_final(error):
    with pytest.raises(type(error)) as caught:
        Detours().leave_out(error, FILES, 2)
    assert caught.value is error
    assert caught.value.hint is None


def test_a_file_that_cannot_be_read_just_now_is_not_left_out():
    with pytest.raises(TransientStorageError):
        Detours().leave_out(about(FILES[1], TransientStorageError), FILES, 3)


def test_a_job_may_leave_out_only_so_many_files():
    files = [file(level, 1, 3) for level in range(6)]
    detours = Detours(2)
    for one in files[:2]:
        detours.leave_out(about(one), files, 3)
    with pytest.raises(LTXChecksumError):
        detours.leave_out(about(files[2]), files, 3)
    assert detours.usable(files) == files[2:]


# --- the jobs ---------------------------------------------------------------------------------------------------------

Job = Callable[[MemoryReplicaClient, Path], bytes]
"""Makes the newest state of a replica; its bytes."""


def read_all(replica: Replica) -> bytes:
    state = replica.snapshot
    return b"".join(replica.pages.read(state, pgno) for pgno in range(1, state.commit + 1))


def opened(client: MemoryReplicaClient, folder: Path) -> bytes:
    replica = Replica(Options(replica_url=client.url))
    try:
        replica.refresh()
        return read_all(replica)
    finally:
        replica.close()


def moved_on(client: MemoryReplicaClient, folder: Path) -> bytes:
    """By a reader that was at the first transaction when the other files came."""
    files = client.store.files
    first = f"0/{1:016x}-{1:016x}.ltx"
    later = {key: files.pop(key) for key in list(files) if key != first}
    replica = Replica(Options(replica_url=client.url))
    try:
        replica.refresh()
        assert replica.snapshot.txid == 1
        files.update(later)
        replica.refresh()
        return read_all(replica)
    finally:
        replica.close()


def restored(client: MemoryReplicaClient, folder: Path) -> bytes:
    restore(client, folder / "o.db")
    return (folder / "o.db").read_bytes()


def compacted(client: MemoryReplicaClient, folder: Path) -> bytes:
    made = snapshot(client)
    return image_after(b"", client.read(made or client.list_files(9)[-1]))


JOBS: list[Job] = [opened, moved_on, restored, compacted]


@pytest.fixture
def history():
    return History(seed=6).run(7)


@pytest.fixture
def client(history):
    """A replica of six transactions on levels 0, 1 and 2 and in a snapshot file, and a seventh on level 0."""
    client = MemoryReplicaClient(memory_store("detours"))
    for txid in range(1, 7):
        history.upload(client, txid)
    for level in (1, 2):
        compact_level(client, level)
    snapshot(client)
    history.upload(client, 7)
    yield client
    drop_memory_store("detours")


def damage(client: MemoryReplicaClient, *places: Place) -> None:
    """Flip a bit where only the file's checksum tells."""
    for level, min_txid, max_txid in places:
        one = next(f for f in client.list_files(level) if (f.min_txid, f.max_txid) == (min_txid, max_txid))
        data = bytearray(client.read(one))
        data[-10] ^= 1
        client.write(level, min_txid, max_txid, bytes(data), one.modified_ms)


@pytest.mark.plan("L28")
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
@pytest.mark.parametrize(
    "damaged", [[(9, 1, 6)], [(9, 1, 6), (2, 1, 6)], [(9, 1, 6), (2, 1, 6), (1, 1, 6)], [(0, 3, 3), (1, 1, 6)]], ids=str
)
def test_every_job_goes_around_damaged_files_where_others_lead_as_far(client, history, tmp_path, job, damaged):
    damage(client, *damaged)
    assert job(client, tmp_path)[100:] == history.images[7][100:]  # a reader patches the header on page 1


@pytest.mark.plan("L28")
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_every_job_names_the_damaged_file_that_none_replaces_and_the_state_before(client, tmp_path, job):
    damage(client, (0, 7, 7))
    with pytest.raises(LTXFormatError) as caught:
        job(client, tmp_path)
    assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 7, 7)


def test_a_level_is_made_of_lower_levels_where_its_own_source_is_damaged(client, history):
    client.delete([*client.list_files(2), *client.list_files(9)])
    history.upload(client, history.step())
    compact_level(client, 1)
    damage(client, (1, 1, 6))
    made = compact_level(client, 2)
    assert made is not None
    assert (made.level, made.min_txid, made.max_txid) == (2, 1, 8)
    assert image_after(b"", client.read(made)) == history.images[8]
    assert compact_level(client, 2) is None


def test_a_level_is_made_of_lower_levels_where_its_only_source_is_damaged(client, history):
    client.delete([*client.list_files(2), *client.list_files(9)])
    damage(client, (1, 1, 6))
    made = compact_level(client, 2)
    assert made is not None
    assert (made.level, made.min_txid, made.max_txid) == (2, 1, 6)  # the seventh is not on level 1 yet
    assert image_after(b"", client.read(made)) == history.images[6]


def test_a_level_is_not_made_where_nothing_replaces_its_damaged_source(client):
    client.delete([*client.list_files(2), *client.list_files(9), *client.list_files(0)[:4]])
    damage(client, (1, 1, 6))
    with pytest.raises(LTXFormatError) as caught:
        compact_level(client, 2)
    assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (1, 1, 6)
    assert client.list_files(2) == []

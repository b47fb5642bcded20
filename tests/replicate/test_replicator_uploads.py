"""Uploads: order, retries, what waits meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from litevfs.errors import (
    LitevfsError,
    ReplicatorError,
    StoragePermissionError,
    TransientStorageError,
)
from litevfs.replicate.state import State
from litevfs.replicate.uploads import retry_transient
from litevfs.testing.faulty import Fault
from tests.replicate.support import (
    LARGE,
    assert_replicated,
    fail_writes,
    files_of,
    refuse_writes,
    source_bytes,
    states,
    written,
)


def test_a_transient_failure_is_tried_again_until_the_sync_is_done(app, failing, replicate):
    replicator = replicate(app, failing)
    fail_writes(failing, 4)
    assert replicator.sync() == 1
    assert written(failing) == [1] * 5
    assert_replicated(failing, app.path)
    assert replicator.status.last_sync_ms is not None


@pytest.mark.parametrize(
    ("failure", "timeout_s"), [(StoragePermissionError("denied"), 30.0), (TransientStorageError("busy"), 0.0)]
)
def test_a_lasting_failure_is_raised_and_the_file_waits(app, failing, replicate, failure: LitevfsError, timeout_s):
    replicator = replicate(app, failing)
    failing.faults.add(Fault("defect", operations=("write",), count=1, error=failure))
    with pytest.raises(type(failure)) as caught:
        replicator.sync(timeout_s)
    assert caught.value is failure
    assert (replicator.status.txid, replicator.status.uploaded_txid, replicator.status.pending_files) == (1, 0, 1)
    assert replicator.sync() == 1
    assert (replicator.status.uploaded_txid, replicator.status.pending_files) == (1, 0)


@pytest.mark.plan("D03")
def test_when_only_the_first_files_of_several_arrive_the_replica_is_the_last_whole_txid(app, failing, replicate):
    replicator = replicate(app, failing)
    refuse_writes(failing)
    expected = []
    for _ in range(5):
        app.insert()
        with pytest.raises(TransientStorageError):
            replicator.sync(timeout_s=0)
        expected.append(source_bytes(app.path))
    for first_missing in range(2, 6):
        refuse_writes(failing, first_missing)
        with pytest.raises(TransientStorageError):
            replicator.sync(timeout_s=0)
        assert [data for _, data in states(files_of(failing))] == expected[: first_missing - 1]
        assert replicator.status.uploaded_txid == first_missing - 1
    failing.faults.clear()
    assert replicator.sync() == 5
    assert [data for _, data in states(files_of(failing))] == expected


def test_captures_go_on_and_the_wal_stays_small_while_uploads_fail(app, failing, replicate):
    replicator = replicate(app, failing, checkpoint_pages=30)
    replicator.sync()
    refuse_writes(failing)
    for _ in range(20):
        app.insert(10, 3000)
        with pytest.raises(TransientStorageError):
            replicator.sync(timeout_s=0)
    assert app.path.with_name("app.db-wal").stat().st_size < 100 * 4120
    failing.faults.clear()
    replicator.sync()
    assert replicator.status.snapshots == 1
    assert_replicated(failing, app.path)


def test_a_file_that_the_state_does_not_count_yet_is_not_uploaded(app, client, replicate, monkeypatch):
    """The next process makes it again when this one is killed here, and not with the same content."""
    replicator = replicate(app)
    replicator.sync()
    folder = replicator._folder
    save, on_replica = folder.save, []

    def save_after_an_upload(state: State, small: bytes | None) -> None:
        assert small is None
        assert [file.txid for file in folder.queues[0].pending()] == [2]
        replicator.places[0].upload(time.monotonic() + 10)  # as its thread does at any time
        on_replica.extend(file.max_txid for file in client.list_files(0))
        save(state)

    monkeypatch.setattr(folder, "save", save_after_an_upload)
    app.insert(size=LARGE)
    assert replicator.sync() == 2
    assert on_replica == [1]
    assert_replicated(client, app.path)


def test_a_file_that_could_not_be_removed_after_its_upload_is_not_uploaded_again(app, failing, replicate, monkeypatch):
    replicator = replicate(app, failing)
    replicator.sync()

    def refuse(files: Any) -> None:
        raise ReplicatorError("cannot remove")

    app.insert()
    with monkeypatch.context() as patch:
        patch.setattr(replicator._folder.queues[0], "discard", refuse)
        with pytest.raises(ReplicatorError, match="cannot remove"):
            replicator.sync()
    app.insert()
    assert replicator.status.pending_files == 1
    assert replicator.sync() == 3
    assert written(failing) == [1, 2, 3]
    assert replicator.status.pending_files == 0


def test_closing_ends_the_wait_for_the_next_attempt_and_none_follows():
    closed, attempts = threading.Event(), 0

    def attempt() -> None:
        nonlocal attempts
        attempts += 1
        closed.set()
        raise TransientStorageError("refused")

    with pytest.raises(TransientStorageError):
        retry_transient(attempt, time.monotonic() + 60, closed)
    assert attempts == 1


def test_attempts_go_on_until_their_time_is_nearly_over(monkeypatch):
    """However long an outage lasts, no pause takes more than a tenth of the time of a `sync`."""
    pauses: list[float] = []
    closed = threading.Event()
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr(closed, "wait", pauses.append)

    def attempt() -> None:
        if len(pauses) < 10:
            raise TransientStorageError("refused")

    retry_transient(attempt, time.monotonic() + 100, closed)
    assert pauses[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert pauses[8:] == pytest.approx([10, 10], rel=0.1)

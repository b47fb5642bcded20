"""How a caller waits until a replica is at a TXID, or is new enough. Owns no state and no thread."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from litevfs.concurrency.retry import Backoff, is_transient, retry
from litevfs.errors import (
    LitevfsError,
    LTXFormatError,
    ReplicaEmptyError,
    ReplicaError,
    ReplicaFolderNotFoundError,
    StaleReplicaError,
    StorageError,
    StorageNotFoundError,
    StorageTimeoutError,
    TXIDGapError,
)
from litevfs.ltx.names import format_txid
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.live.replica")


class Awaited(Protocol):
    """The part of a replica that this module uses."""

    @property
    def url(self) -> str:
        """The replica's URL, without credentials."""
        ...

    @property
    def snapshot(self) -> Snapshot | None:
        """The published state."""
        ...

    def refresh_within(self, seconds: float) -> object:
        """One refresh, which callers share. Raises the refresh's error, and StorageTimeoutError."""
        ...

    def wait_for_news(self, known: Snapshot | None, timeout_s: float) -> object:
        """Wait until another state than `known` is published, the replica is closed, or the time is over."""
        ...


def wait_for_txid(replica: Awaited, txid: int, timeout_s: float, longest_pause_s: float) -> Snapshot:
    """The published state once it is at `txid` or later; asks for a refresh at once, then again and again.

    Raises StaleReplicaError after `timeout_s` seconds, and a StorageError that retries cannot help.
    """
    deadline = time.monotonic() + timeout_s
    late = f"TXID {format_txid(txid)} has not arrived within {timeout_s:g} s"
    before: Snapshot | None = None

    def refreshed() -> Snapshot:
        nonlocal before
        before = replica.snapshot
        failure: LitevfsError | None = None
        if before is None or before.txid < txid:
            try:
                replica.refresh_within(deadline - time.monotonic())
            except (StorageError, ReplicaError, LTXFormatError) as error:
                # A file half uploaded, for example, or deleted and still listed.
                logger.info("while waiting for TXID %s: %s", format_txid(txid), error)
                failure = error
        newest = replica.snapshot  # a refresh may publish states and fail later on
        if newest is not None and newest.txid >= txid:
            return newest
        raise failure or stale_error(replica, late, None)

    def may_help(error: LitevfsError) -> bool:
        return not isinstance(error, StorageError) or may_pass(error)

    def pause(seconds: float, _: LitevfsError) -> None:
        replica.wait_for_news(before, seconds)

    backoff = Backoff(cap_s=longest_pause_s)
    try:
        return retry(refreshed, backoff, until=deadline, may_pass=may_help, pause=pause, tries_at_the_end=True)
    except StaleReplicaError:
        raise
    except (StorageError, ReplicaError, LTXFormatError) as error:
        if not may_help(error):
            raise
        raise stale_error(replica, late, error) from error


def stale_error(replica: Awaited, what: str, failure: LitevfsError | None) -> StaleReplicaError:
    """The error for a caller for whom the replica is too old; `failure`: of the last refresh, if it failed."""
    error = f"; the last refresh failed: {failure.message}" if failure else ""
    hint = failure.hint if failure else "check that the primary is running and replicating"
    txid = replica.snapshot.txid if replica.snapshot else None
    return StaleReplicaError(what + error, min_txid=txid, key=replica.url, hint=hint)


def may_pass(error: LitevfsError) -> bool:
    """Whether building a state may succeed next time: also after a file has vanished since it was listed."""
    return is_transient(error) or (isinstance(error, StorageNotFoundError) and error.min_txid is not None)


def may_begin(error: LitevfsError) -> bool:
    """Whether there may be a first state next time."""
    return may_pass(error) or isinstance(error, ReplicaEmptyError | ReplicaFolderNotFoundError | TXIDGapError)


def open_error(error: LitevfsError, url: str, timeout_s: float, *, verifies: bool) -> LitevfsError:
    """The error for a caller who has waited so long for a first state, the last try for which ended with `error`."""
    if isinstance(error, StorageTimeoutError) and verifies:
        hint = "verify reads every LTX file whole: open_timeout has to leave time for that"
        return StorageTimeoutError(error.message, key=url, hint=hint)
    if isinstance(error, ReplicaFolderNotFoundError):
        what = f"no such replica folder, also after waiting {timeout_s:g} s"
        return ReplicaFolderNotFoundError(what, key=error.key, hint=f"{error.hint}; open_timeout sets the wait")
    if not isinstance(error, ReplicaEmptyError):
        return error
    return ReplicaEmptyError(
        f"no LTX files on any level after waiting {timeout_s:g} s",
        key=url,
        hint="check the path, and that the primary replicates to it; open_timeout sets the wait",
    )

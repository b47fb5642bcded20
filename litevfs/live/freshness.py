"""How a caller waits until a replica is at a TXID, or is new enough. Owns no state and no thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from litevfs.concurrency.retry import Backoff, is_transient, retry
from litevfs.errors import (
    LitevfsError,
    LTXFormatError,
    ReplicaError,
    StaleReplicaError,
    StorageError,
    StorageNotFoundError,
)
from litevfs.ltx.names import format_txid
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.live.replica")

T = TypeVar("T")

RETRY_CAP_S = 0.5
"""Longest pause between tries of a call that a user waits for."""
MIN_REFRESH_S = 1.0
"""A storage gets at least this long to answer, however short a caller's time is."""


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


def persistently(
    replica: Awaited,
    call: Callable[[float], T],
    timeout_s: float,
    may_pass: Callable[[LitevfsError], bool],
    note: Callable[[LitevfsError], object] = lambda _: None,
) -> T:
    """`call(seconds it may take)`, tried again after errors that may pass, until the time is over.

    `note` gets each error after which there is another try.
    """
    deadline = time.monotonic() + timeout_s

    def pause(seconds: float, error: LitevfsError) -> None:
        logger.info("%s: trying again in %.3f s", replica.url, seconds)
        note(error)
        replica.wait_for_news(replica.snapshot, seconds)

    return retry(
        lambda: call(max(deadline - time.monotonic(), MIN_REFRESH_S)),
        Backoff(cap_s=RETRY_CAP_S),
        until=deadline,
        may_pass=may_pass,
        pause=pause,
    )


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

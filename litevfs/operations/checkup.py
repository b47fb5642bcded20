"""Checks that what lies on a replica is the database: restores a state to a scratch file and compares all pages.

Owns the comparison and its schedule, and no thread. The database is read once for it, in the state of one TXID, as a
sum for each page; captures wait meanwhile, the application does not.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from litevfs.errors import LitevfsError, OptionError, ReplicatorError
from litevfs.ltx.format import lock_pgno
from litevfs.operations.restore import restore
from litevfs.replicate.place import Place
from litevfs.replicate.provenance import PageSums
from litevfs.replicate.replicator import Replicator
from litevfs.replicate.status import CheckResult, unix_time_ms

logger = logging.getLogger("litevfs.operations.checkup")

UPLOAD_TIMEOUT_S = 60.0
_MOST_NAMED = 5
_NOT_YET_S = 1.0


def check_replica(replicator: Replicator, scratch_folder: str | None = None) -> CheckResult:
    """Capture what is new, restore that TXID from the replica, check it with SQLite, and compare it page by page.

    `scratch_folder` (default: the system's) needs room for the database. Sets `replicator.last_check`, whose `problem`
    says what differs. Of several places, each is checked; returns the first that differs. Raises StorageError,
    ReplicatorError when one could not be tried to the end, after the others.
    """
    txid, sums = replicator.read_captured(PageSums)
    error: LitevfsError | None = None
    for place in replicator.places:
        try:
            place.upload_captured(time.monotonic() + UPLOAD_TIMEOUT_S)
            if len(replicator.places) > 1 and not place.has_state(txid):
                raise ReplicatorError(f"TXID {txid:016x} is not there yet", key=place.client.url)
            place.last_check = _compared(replicator, place, txid, sums, scratch_folder)
        except LitevfsError as exc:
            error = exc
    if error is not None:
        raise error
    result = replicator.last_check
    assert result is not None, "each place was checked"
    return result


def _compared(
    replicator: Replicator, place: Place, txid: int, sums: PageSums, scratch_folder: str | None
) -> CheckResult:
    with tempfile.TemporaryDirectory(prefix="litevfs-check-", dir=scratch_folder) as folder:
        path = Path(folder, "restored.db")
        try:
            restore(place.client, path, txid=txid, integrity_check=True)
            problem = _difference(path, sums)
        except LitevfsError as exc:
            problem = f"it cannot be restored: {exc}"
    where = "the replica" if len(replicator.places) == 1 else place.client.url
    if problem is None:
        logger.info("%s: TXID %016x restored from %s is the database", replicator.path, txid, where)
    else:
        if where != "the replica":
            problem = f"at {where}: {problem}"
        logger.error("%s: TXID %016x on %s is not the database: %s", replicator.path, txid, where, problem)
    return CheckResult(txid, unix_time_ms(), problem)


class Checkup:
    """Calls `check_replica` every `interval_s` seconds; the first time somewhere in the first interval.

    So many databases that begin together are not all checked together.
    """

    def __init__(self, replicator: Replicator, interval_s: float) -> None:
        if interval_s <= 0:
            raise OptionError(f"not an interval: {interval_s} s")
        self._replicator, self._interval_s = replicator, interval_s
        self._is_first = True

    def turn(self) -> float:
        """As a `Turn`: returns the seconds until the next."""
        if self._is_first:
            self._is_first = False
            return random.uniform(0.0, self._interval_s)
        if not any(place.uploaded_txid for place in self._replicator.status.places):
            return min(_NOT_YET_S, self._interval_s)
        try:
            check_replica(self._replicator)
        except LitevfsError as exc:
            logger.warning("%s: the replica could not be checked: %s", self._replicator.path, exc)
        return self._interval_s


def _difference(path: Path, sums: PageSums) -> str | None:
    size = path.stat().st_size
    if size != sums.commit * sums.page_size:
        return f"it has {size:,} bytes, the database has {sums.commit * sums.page_size:,}"
    different = [pgno for pgno, page in _pages(path, sums.page_size) if not sums.agrees(pgno, page)]
    if not different:
        return None
    named = ", ".join(map(str, different[:_MOST_NAMED])) + (", ..." if len(different) > _MOST_NAMED else "")
    return f"{len(different)} of {sums.commit} pages differ: {named}"


def _pages(path: Path, page_size: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        pgno = 0
        while page := file.read(page_size):
            pgno += 1
            if pgno != lock_pgno(page_size):
                yield pgno, page

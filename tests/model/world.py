"""Everything there is: an application, a replicator, upkeep of the replica, sites that read it, and the oracle.

All parts are the real ones; the storage is in memory, its faults are injected, and the replicator's clock goes by hand.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import litevfs
from litevfs.concurrency.retry import Backoff
from litevfs.errors import LitevfsError, StorageError, UnrelatedDatabaseError
from litevfs.files import fetch
from litevfs.live import freshness, replica
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.maintenance.retention import enforce_level_0_retention, enforce_snapshot_retention
from litevfs.maintenance.schedule import Maintenance, MaintenanceConfig
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.replicate import Replicator
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient, faulty_replica
from tests.fast_folder import fast_folder
from tests.model.oracle import Oracle, newest_txid, reachable_txids
from tests.model.primary import Application
from tests.model.reader import Reader, is_excused
from tests.model.stdlib import wait_for_closings
from tests.support import wait_until

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z: when a world begins."""
READ_TIMEOUT_S = 30.0
"""As long as a busy machine may need: where a fault lasts, the number of retries ends them."""
RETRY_FIRST_S, RETRIES = 0.001, 8
"""First pause before a retry, for readers and upkeep, and how many of them follow each other."""
TIMETABLE = MaintenanceConfig(
    levels={1: 30.0, 2: 300.0}, snapshot_interval_s=1800.0, snapshot_retention_s=600.0, level_0_retention_s=60.0
)
LIES = ("hide_newest", "show_deleted", "repeat")
"""Faults by which a listing is not that of this moment."""
DOORS = ("apsw", "apsw", "sqlite3", "sqlite3")
"""By slot: at each site, readers through both share the replica."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a world is like."""

    page_size: int = 4096
    auto_vacuum: int = 0
    block_size: int = 0  # bytes; of the site that looks remote if it is more than 0
    cache_size: int = 10_000_000  # bytes
    hydration: bool = False
    prefetch: bool = True
    cache_dir: bool = False
    hydration_lasts: bool = False  # in files that the next process uses


class Site:
    """One place to read the replica from: connections there share one published state."""

    def __init__(self, url: str, options: dict[str, Any], faults: Faults | None = None) -> None:
        self.url, self.options, self.faults = url, options, faults
        self.is_calm = True  # no fault since the last time all went
        self.lists_truly = True  # nor a listing that lies
        self.seen = 0  # TXID that the newest transaction saw, or the last look without faults

    def add(self, fault: Fault) -> None:
        """From now on, this may happen."""
        if self.faults is not None:
            self.faults.add(fault)
            self.is_calm = False
            self.lists_truly &= fault.kind not in LIES

    def calm(self) -> None:
        """No more faults."""
        if self.faults is not None:
            self.faults.clear()
        self.is_calm = self.lists_truly = True


class Far:
    """Two processes that read from behind the same faults, and share `cache_dir` if there is one.

    They are two replicas of this process: connections whose options differ share nothing else.
    """

    def __init__(self, url: str, options: dict[str, Any], faults: Faults) -> None:
        other = options | {"read_timeout": READ_TIMEOUT_S + 1}
        self.sites = Site(url, options, faults), Site(url, other, faults)

    def add(self, fault: Fault) -> None:
        """See `Site`."""
        self.sites[0].add(fault)
        self.sites[1].is_calm, self.sites[1].lists_truly = self.sites[0].is_calm, self.sites[0].lists_truly

    def calm(self) -> None:
        """See `Site`."""
        for site in self.sites:
            site.calm()


def _wait_for_threads() -> None:
    """Closing waits a bounded time for a thread that writes blocks; the folder is not removed under it."""
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("litevfs-")], timeout_s=20
    )


class World:
    """One course of events. Whatever happens in it is checked as it happens."""

    def __init__(self, config: Config, counts: Counter[str]) -> None:
        self.counts = counts
        self.oracle = Oracle()
        self.now_ms = START_MS
        self.readers: dict[int, Reader] = {}  # by slot
        self._restored = 0
        self._is_state_lost = False  # since the last sync
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="litevfs-model-", dir=fast_folder()))
            self.folder = Path(folder)
            stack.callback(_wait_for_threads)
            stack.callback(self.oracle.close)
            stack.enter_context(_no_waiting())
            self._open_storage(stack, config)
            self.app = Application(self.folder / "app.db", page_size=config.page_size, auto_vacuum=config.auto_vacuum)
            stack.callback(self.app.close)
            self.replicator = self._new_replicator()
            stack.callback(lambda: self.replicator.close())
            stack.callback(self._close_readers)
            self.sync()
            self._stack = stack.pop_all()

    def _open_storage(self, stack: ExitStack, config: Config) -> None:
        name = f"model-{uuid.uuid4().hex[:12]}"
        self.store = memory_store(name)
        stack.callback(drop_memory_store, name)
        url = f"memory://{name}"
        options = {
            "cache_size": config.cache_size,
            "prefetch": config.prefetch,
            "hydration_enabled": config.hydration,
            "read_timeout": READ_TIMEOUT_S,
        }
        faults = stack.enter_context(
            faulty_replica(url, seed=1, block_size=config.block_size, reads_named=config.block_size > 4096)
        )
        self._near, far_options = Site(url, dict(options)), dict(options)
        if config.cache_dir:
            far_options["cache_dir"] = self.folder / "blocks"
        self.far = Far(faults.url, far_options, faults)
        if config.hydration_lasts:
            for number, site in enumerate((self._near, *self.far.sites)):
                site.options["hydration_path"] = self.folder / f"hydrated-{number}.db"
        self.primary_faults = Faults(url, seed=2)
        self.writer, self.keeper = (
            FaultyReplicaClient(MemoryReplicaClient(self.store), self.primary_faults) for _ in "ab"
        )
        stack.callback(self.writer.close)
        stack.callback(self.keeper.close)
        self.maintenance = Maintenance(self.keeper, TIMETABLE)

    def close(self) -> None:
        """End it all."""
        self._stack.close()

    def _close_readers(self) -> None:
        for reader in self.readers.values():
            reader.close()
        self.readers.clear()
        wait_for_closings()

    # --- what the oracle says -----------------------------------------------------------------------------------------

    @property
    def newest(self) -> int:
        """The newest TXID in the storage."""
        return newest_txid(self.store.files)

    def reachable(self) -> set[int]:
        """The TXIDs whose state is in the storage."""
        return reachable_txids(self.store.files)

    def excuse(self, error: Exception, site: Site, txid: int) -> None:
        """Fail unless there is a good reason for a read at `txid` to have failed so."""
        if not is_excused(error, is_calm=site.is_calm, is_held=txid in self.reachable()):
            raise AssertionError(f"a read at TXID {txid} failed without need: {error!r}") from error
        self.counts[f"read: {type(error).__name__}{'' if site.is_calm else ' (faults)'}"] += 1

    @staticmethod
    def rfc3339(time_ms: int) -> str:
        """A time as users write it."""
        return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{time_ms % 1000:03d}Z"

    # --- the primary's side -------------------------------------------------------------------------------------------

    def tick(self, ms: int) -> None:
        """Time goes by."""
        self.now_ms += ms

    def sync(self) -> None:
        """Everything that is committed gets a TXID and is in the storage."""
        txid = self._synced()
        self._record(txid)
        assert self.newest == txid

    def sync_with(self, fault: Fault | None) -> None:
        """A sync during which a fault happens, or (None) the answer to an upload gets lost."""
        self.primary_faults.add(Fault("lost_answer", count=1) if fault is None else fault)
        try:
            self._record(self._synced(timeout_s=0))
        except StorageError:
            self.counts["syncs that failed"] += 1
            made = self.replicator.status.txid
            if made > max(self.oracle.images, default=0):
                self._record(made)
        finally:
            self.primary_faults.clear()

    def _synced(self, timeout_s: float = 30.0) -> int:
        """Sync. A database that is refused gets its way by a new history, as an operator would say."""
        try:
            txid = self.replicator.sync(timeout_s)
        except UnrelatedDatabaseError:
            newest = self.newest
            assert self._is_state_lost, "refused, though the local state shows where it came from"
            assert self.app.image() != self.oracle.images.get(newest), "refused, though it is the newest state"
            self.counts["syncs refused"] += 1
            self.replicator.close()
            self.replicator = self._new_replicator(new_history=True)
            assert self.newest == newest, "a refusal has written something"
            txid = self.replicator.sync(timeout_s)
        self.counts["syncs without local state"] += self._is_state_lost
        self._is_state_lost = False
        return txid

    def _record(self, txid: int) -> None:
        self.oracle.record(txid, self.app.image(), self.now_ms)

    def restart_replicator(self, meanwhile: list[tuple[str, int]], *, lose_state: bool) -> None:
        """The replicator ends and starts again, without what it knew if its folder is lost."""
        self.replicator.close()
        if lose_state:
            shutil.rmtree(self.folder / ".app.db-litevfs")
            self._is_state_lost = True
            self.oracle.forget_after(self.newest)
        for kind, n in meanwhile:
            self.app.affair(kind, n)
        self.replicator = self._new_replicator()

    def _new_replicator(self, *, new_history: bool = False) -> Replicator:
        return Replicator(
            self.app.path,
            self.writer,
            checkpoint_pages=40,
            truncate_pages=80,
            look_interval_s=0,
            new_history=new_history,
            clock_ms=lambda: self.now_ms,
        )

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def compact(self, level: int) -> None:
        """Files of the level below become one; 9 is a snapshot of the newest state."""
        with self._keeping_the_newest_state():
            if level == 9:
                snapshot(self.keeper, temp_folder=str(self.folder))
            else:
                compact_level(self.keeper, level, temp_folder=str(self.folder))

    def retain(self, kind: str, age_ms: int) -> None:
        """Files older than `age_ms` go, as far as they can be spared."""
        with self._keeping_the_newest_state():
            enforce = enforce_level_0_retention if kind == "level 0" else enforce_snapshot_retention
            self.counts["files deleted"] += len(enforce(self.keeper, self.now_ms - age_ms))

    def keep_timetable(self) -> None:
        """Whatever is due."""
        with self._keeping_the_newest_state():
            report = self.maintenance.run_due(self.now_ms / 1000)
            assert not report.errors
            self.counts["files deleted"] += len(report.deleted)

    def keeper_fails_once(self, fault: Fault) -> None:
        """The next compaction or retention meets a fault that passes."""
        self.primary_faults.add(fault)
        with contextlib.suppress(LitevfsError), self._keeping_the_newest_state():
            self.maintenance.run_all(self.now_ms / 1000)
        self.primary_faults.clear()

    @contextmanager
    def _keeping_the_newest_state(self) -> Iterator[None]:
        newest = self.newest
        yield
        assert self.newest == newest
        assert newest in self.reachable() or not newest, "upkeep has destroyed the newest state"

    def restore(self, n: int) -> None:
        """A state is restored byte by byte, if and only if the storage holds it."""
        known = sorted(self.oracle.images)
        txid = known[n % len(known)]
        target = self.folder / f"restored-{self._restored}.db"
        self._restored += 1
        try:
            litevfs.restore(self.keeper, target, txid=txid)
        except litevfs.TXIDNotFoundError:
            assert txid not in self.reachable(), f"TXID {txid} can be restored"
            return
        assert txid in self.reachable()
        assert target.read_bytes() == self.oracle.images[txid], f"restored TXID {txid} wrongly"
        target.unlink()
        self.counts["restored"] += 1

    # --- readers ------------------------------------------------------------------------------------------------------

    def site(self, slot: int) -> Site:
        """Where the reader in a slot reads: even ones at the near site, odd ones from afar, in one of two processes."""
        return self.far.sites[slot // 2 % 2] if slot % 2 else self._near

    def restart_readers(self, site: Site, record: str) -> None:
        """The process at a site ends, and the next one finds what that left.

        The records beside hydrated files and blocks are "as left", or "kept" for a later time, when the next process
        finds them "as it was" then: as after a kill, for records are renewed seldom.
        """
        for slot in [slot for slot, reader in self.readers.items() if reader.site is site]:
            self.close_reader(slot)
        kept = self.folder / "kept"
        kept.mkdir(exist_ok=True)
        for path in kept.iterdir() if record == "as it was" else ():
            shutil.copy(path, self.folder / ("blocks" if path.suffix == ".state" else "") / path.name)
        if record == "kept":
            for path in (*self.folder.glob("hydrated-*-litevfs"), *self.folder.glob("blocks/*.state")):
                shutil.copy(path, kept / path.name)

    def reader(self, slot: int) -> Reader | None:
        """The reader in a slot, opened if there is none: even slots at the near site. None if it cannot be."""
        if slot not in self.readers:
            self.open(slot, self.site(slot), txid=None)
        return self.readers.get(slot)

    def open(self, slot: int, site: Site, txid: int | None) -> None:
        """A new reader, of the newest state or of a fixed one."""
        if slot in self.readers:
            self.close_reader(slot)
        newest = self.newest
        try:
            reader = Reader(self, site, txid=txid, door=DOORS[slot % len(DOORS)])
        except LitevfsError as error:
            if site.is_calm:
                assert isinstance(error, litevfs.TXIDNotFoundError), repr(error)
                assert txid is not None
                assert txid not in self.reachable(), f"TXID {txid} is there and cannot be opened"
            self.counts[f"open: {type(error).__name__}{'' if site.is_calm else ' (faults)'}"] += 1
            return
        self.readers[slot] = reader
        self.counts[f"opened by {reader.door}"] += 1
        if site.is_calm:
            assert txid is None or txid in self.reachable(), f"opened TXID {txid}, which the storage does not hold"
            if txid is None:
                site.seen = max(site.seen, newest)

    def close_reader(self, slot: int) -> None:
        """The last live reader of a site takes what it knew with it."""
        reader = self.readers.pop(slot, None)
        if reader is None:
            return
        reader.close()
        if not any(other.site is reader.site and not other.is_fixed for other in self.readers.values()):
            reader.site.seen = 0


class _FewTries(Backoff):
    """Pauses for a few tries; the next one is longer than any time limit."""

    def next_s(self, retry_after_s: float | None = None) -> float:
        pause_s = super().next_s(retry_after_s)
        return pause_s if self._tries <= RETRIES else 3600.0


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Retries come soon and are few, and a busy machine is no storage that hangs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backoff, "base_s", RETRY_FIRST_S)
        patch.setattr(fetch, "Backoff", _FewTries)
        patch.setattr(freshness, "Backoff", _FewTries)
        for module in (freshness, replica):
            patch.setattr(module, "MIN_REFRESH_S", 60.0)
        yield

"""When to compact, write snapshot files and delete: Litestream's schedule, and one object that follows it. No thread.

Windows are aligned to the clock, as Litestream's are: a level of 30 s is due once after every :00 and :30, for the
process that checks first. The times of the files in the replica show whether another process was first. Of many
replicas in one process, each begins its work late in each window, by a time of its own: not all at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import MappingProxyType

from litevfs.errors import LitevfsError, OptionError, ReplicaEmptyError, StorageClosedError
from litevfs.files.stream import FileStreamer
from litevfs.maintenance.compaction import compact_level, newest_file, snapshot
from litevfs.maintenance.retention import enforce_level_0_retention, enforce_snapshot_retention
from litevfs.replica_clients.base import SNAPSHOT_LEVEL, LTXFileInfo, ReplicaClient

logger = logging.getLogger("litevfs.maintenance")

RETRY_S = 30.0
"""Pause after a failure, at most; the next window may come sooner."""
SNAPSHOT_RETENTION_INTERVAL_S = 3600.0

DEFAULT_LEVELS: Mapping[int, float] = MappingProxyType({1: 30.0, 2: 300.0, 3: 3600.0})
"""Level: interval of its compactions, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceConfig:
    """Which tasks run how often. Raises OptionError for values that make no sense."""

    levels: Mapping[int, float] = field(
        default_factory=lambda: DEFAULT_LEVELS
    )  # level: interval, s; each from the last
    snapshot_interval_s: float = 86_400.0
    snapshot_retention_s: float = 86_400.0  # how far back states can be restored
    level_0_retention_s: float = 300.0  # how long a level-0 file lives at least
    delete_files: bool = True  # False: the storage deletes old files, as by a lifecycle rule
    temp_folder: str | None = None  # where compaction keeps its inputs and its result; None: the system's

    def __post_init__(self) -> None:
        levels = list(self.levels)
        if not levels or levels != sorted(levels) or not 1 <= levels[0] <= levels[-1] < SNAPSHOT_LEVEL:
            raise OptionError(
                f"compaction levels {levels} are not an ascending choice from 1 to {SNAPSHOT_LEVEL - 1}",
                hint="the default is 1, 2, 3",
            )
        for (lower, shorter), (level, interval_s) in pairwise(self.levels.items()):
            if interval_s < shorter:
                raise OptionError(f"level {level} is compacted more often than level {lower}")
        for interval_s in (*self.levels.values(), self.snapshot_interval_s):
            if not (math.isfinite(interval_s) and interval_s > 0):
                raise OptionError(f"not an interval: {interval_s} s", hint="intervals are longer than nothing")
        for retention_s in (self.snapshot_retention_s, self.level_0_retention_s):
            if not (math.isfinite(retention_s) and retention_s >= 0):
                raise OptionError(f"not a retention time: {retention_s} s")
        if self.level_0_retention_s > self.snapshot_retention_s:
            raise OptionError(
                "level-0 files cannot outlive the snapshots they lead to", hint="lengthen the snapshot retention"
            )


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """The results of one run."""

    written: tuple[LTXFileInfo, ...]
    deleted: tuple[LTXFileInfo, ...]
    errors: tuple[Exception, ...]  # of tasks that will be tried again


@dataclass(slots=True)
class _Task:
    name: str
    interval_s: float
    run: Callable[[float], list[LTXFileInfo]]  # given the time in seconds: files written or deleted
    level: int | None  # the level it writes, None for one that deletes
    due_at_s: float = 0.0  # Unix time
    error: Exception | None = None  # of the last run

    def is_due(self, now_s: float) -> bool:
        # A clock that was set back must not stop all tasks until it reaches the old time again.
        return now_s >= self.due_at_s or now_s < self.due_at_s - self.interval_s


class Maintenance:
    """Keeps one replica compacted and free of old files. For one thread at a time; the client stays open.

    `late`, from 0 to less than 1: work begins by this share of the shortest interval after each window has begun.
    """

    def __init__(self, client: ReplicaClient, config: MaintenanceConfig | None = None, *, late: float = 0.0) -> None:
        self._client = client
        self.config = config = config or MaintenanceConfig()
        self._late_s = late * next(iter(config.levels.values()))
        self._newest: dict[int, LTXFileInfo] = {}  # by level, from the last listing
        self._tasks: list[_Task] = []
        source = 0
        for level, interval_s in config.levels.items():
            run = partial(self._compact, level, source)
            self._tasks.append(_Task(f"compaction into level {level}", interval_s, run, level))
            source = level
        first_level, first_interval_s = next(iter(config.levels.items()))
        self._tasks += [
            _Task("snapshot", config.snapshot_interval_s, self._snapshot, SNAPSHOT_LEVEL),
            _Task(
                "level-0 retention",
                max(first_interval_s, config.level_0_retention_s / 5),
                partial(self._retain_level_0, first_level),
                None,
            ),
            _Task(
                "snapshot retention",
                min(config.snapshot_interval_s, SNAPSHOT_RETENTION_INTERVAL_S),
                self._retain_snapshots,
                None,
            ),
        ]

        if not config.delete_files:
            self._tasks = [task for task in self._tasks if task.level is not None]

    @property
    def last_error(self) -> str | None:
        """The error of the first task whose last run failed; None when there is none."""
        return next((f"{task.name}: {task.error}" for task in self._tasks if task.error), None)

    def next_due_in_s(self, now_s: float | None = None) -> float:
        """Seconds until a task is due; 0 when one is."""
        now_s = time.time() if now_s is None else now_s
        if any(task.is_due(now_s) for task in self._tasks):
            return 0.0
        return min(task.due_at_s for task in self._tasks) - now_s

    def run_due(self, now_s: float | None = None) -> MaintenanceReport:
        """Run the tasks due at `now_s` (Unix time, now if None) that no other process has run in this window.

        A task that fails does not keep the others from running: its error is in the report, and it is due again after
        RETRY_S. Raises only StorageClosedError.
        """
        return self._run(now_s, everything=False)

    def run_all(self, now_s: float | None = None) -> MaintenanceReport:
        """Run all tasks now, due or not: `litevfs compact`. Errors as in `run_due`."""
        return self._run(now_s, everything=True)

    def _run(self, now_s: float | None, *, everything: bool) -> MaintenanceReport:
        now_s = time.time() if now_s is None else now_s
        written: list[LTXFileInfo] = []
        deleted: list[LTXFileInfo] = []
        errors: list[Exception] = []
        for task in self._tasks:
            if not everything and not task.is_due(now_s):
                continue
            window_s = math.floor((now_s - self._late_s) / task.interval_s) * task.interval_s
            task.due_at_s = window_s + task.interval_s + self._late_s
            task.error = None
            try:
                if everything or task.level is None or not self._was_done(task.level, window_s, now_s):
                    (deleted if task.level is None else written).extend(task.run(now_s))
            except ReplicaEmptyError:
                pass
            except StorageClosedError:
                raise
            except Exception as error:  # of another kind: a mistake of ours or of a client, or a disk that fails
                if isinstance(error, LitevfsError):
                    logger.warning("%s of %s failed: %s", task.name, self._client.url, error)
                else:
                    logger.exception("%s of %s failed", task.name, self._client.url)
                task.due_at_s = min(task.due_at_s, now_s + RETRY_S)
                task.error = error
                errors.append(error)
        return MaintenanceReport(tuple(written), tuple(deleted), tuple(errors))

    def _was_done(self, level: int, window_s: float, now_s: float) -> bool:
        """Whether the newest file of `level` is of this window already. A time in the future says nothing."""
        with FileStreamer(self._client) as streamer:
            newest = newest_file(streamer, level, self._newest.get(level))
        if newest is None:
            return False
        self._newest[level] = newest
        return window_s * 1000 <= newest.modified_ms <= now_s * 1000

    def _compact(self, level: int, source: int, now_s: float) -> list[LTXFileInfo]:
        file = compact_level(
            self._client,
            level,
            source_level=source,
            known=self._newest.get(level),
            temp_folder=self.config.temp_folder,
        )
        return [] if file is None else [file]

    def _snapshot(self, now_s: float) -> list[LTXFileInfo]:
        file = snapshot(self._client, temp_folder=self.config.temp_folder)
        return [] if file is None else [file]

    def _retain_level_0(self, level: int, now_s: float) -> list[LTXFileInfo]:
        horizon_ms = int((now_s - self.config.level_0_retention_s) * 1000)
        return enforce_level_0_retention(self._client, horizon_ms, level=level, now_ms=now_s * 1000)

    def _retain_snapshots(self, now_s: float) -> list[LTXFileInfo]:
        horizon_ms = int((now_s - self.config.snapshot_retention_s) * 1000)
        return enforce_snapshot_retention(self._client, horizon_ms, now_ms=now_s * 1000)

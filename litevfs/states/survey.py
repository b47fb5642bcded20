"""Lists all levels of a replica in as few requests as its storage and size allow, and remembers when. Judges nothing.

One listing holds every level of a usual replica. Where the storage cannot do that, or one answer has no room for all
names, it lists levels one by one: each from its newest known file on, where the caller wants only newer files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from litevfs.errors import ReplicaError
from litevfs.files.fetch import Fetcher
from litevfs.files.plan import newest_state
from litevfs.replica_clients.base import LEVELS, SNAPSHOT_LEVEL, LTXFileInfo, StampsLevels
from litevfs.states.snapshot import Snapshot

INTERVAL_S = 15.0
"""How often all levels are listed: a state that level 0 does not lead to is found no later."""
EARLY_S = 0.05
"""A poll that comes early by so much counts as on time, so that fifteen polls a second apart are one interval."""
USUAL_LEVELS = (0, 1, 2, 3, SNAPSHOT_LEVEL)
RARE_LEVELS = tuple(level for level in LEVELS if level not in USUAL_LEVELS)


class Survey:
    """The survey of one replica. One caller at a time; `clock` gives seconds that always grow."""

    def __init__(
        self,
        fetcher: Fetcher,
        clock: Callable[[], float],
        as_known: Callable[[list[LTXFileInfo]], list[LTXFileInfo]] = lambda files: files,
    ) -> None:
        """`as_known` replaces listed files by the values already known of the same files."""
        self.use(fetcher)
        self._clock = clock
        self._as_known = as_known
        self._last = -math.inf
        self._starts: dict[int, int] = {}  # level -> min_txid of the newest file known there
        self._stamp: object = None  # of level 0, before the refresh under way
        self._at_rest: tuple[Snapshot, object, bool] | None = None  # the state, the stamp, what its refresh returned
        self._is_large = False  # one listing does not hold all levels

    def use(self, fetcher: Fetcher) -> None:
        """Go on with another fetcher of the same replica."""
        self._fetcher = fetcher
        self._stamps = fetcher.client if isinstance(fetcher.client, StampsLevels) else None

    def known(self, snapshot: Snapshot) -> bool | None:
        """What the last refresh returned, if level 0 is as it was then and it would return that again; else None."""
        self._stamp = None if self._stamps is None else self._stamps.stamp(0)
        at_rest = self._at_rest
        is_known = at_rest is not None and at_rest[0] is snapshot and at_rest[1] == self._stamp is not None
        self._at_rest = at_rest if is_known and not self.is_undone else None
        return self._at_rest[2] if self._at_rest else None

    def learn_from(self, news: Sequence[LTXFileInfo]) -> None:
        """A listing has shown these new files. If the stamp did not: not every file system gives its folders times."""
        if news and self._at_rest is not None:
            self._stamps = None

    def rest(self, snapshot: Snapshot, result: bool) -> None:
        """A refresh has left nothing undone, and returned `result`."""
        self._at_rest = snapshot, self._stamp, result

    def now(self) -> float:
        """The time by the clock, for `done`."""
        return self._clock()

    def is_due(self) -> bool:
        """Whether it is time to list all levels."""
        return self._clock() - self._last >= INTERVAL_S - EARLY_S

    def done(self, began: float) -> None:
        """Note that a refresh that began at `began` listed all levels and left nothing undone."""
        self._last = began

    def not_done(self) -> None:
        """Note that a refresh of all levels has begun; until it is `done`, the next one has to list them again."""
        self._last = -math.inf

    def resume(self) -> None:
        """An earlier process has listed all levels, a while ago: the next refresh goes on from there."""
        self._last = self._clock() - INTERVAL_S

    @property
    def is_undone(self) -> bool:
        """Whether the last refresh with all levels left something undone: the obstacle may still be there."""
        return self._last == -math.inf

    def list_all(self, target: int | None = None) -> list[LTXFileInfo]:
        """The files of all levels; one by one, those that Litestream leaves empty by default only if the others do not
        suffice for the newest state, or for the state at TXID `target`.
        """
        files = None if self._is_large else self._fetcher.list_from(0)
        if files is None:
            self._is_large = True
            files = self._fetcher.list_levels(USUAL_LEVELS)
            try:
                newest_state(files, target)
            except ReplicaError:
                files += self._fetcher.list_levels(RARE_LEVELS)
        self._note(files)
        return self._as_known(files)

    def list_level_0(self, min_txid: int) -> list[LTXFileInfo]:
        """Files of level 0 from `min_txid` on."""
        return self._as_known(self._fetcher.list_files(0, min_txid))

    def list_ahead(self, min_txid: int) -> list[LTXFileInfo]:
        """Files of level 0 from `min_txid` on; of the others at least those newer than their newest known file."""
        files = None if self._is_large else self._fetcher.list_from(0, min_txid)
        if files is None:
            above = self._fetcher.list_from(1, self._starts.get(1, 1))
            if above is None:
                above = self._list_each([level for level in USUAL_LEVELS if level])
            files = self._fetcher.list_files(0, min_txid) + above
        self._note(files)
        return self._as_known(files)

    def _list_each(self, levels: Iterable[int]) -> list[LTXFileInfo]:
        calls = [partial(self._fetcher.list_files, level, self._starts.get(level, 1)) for level in levels]
        return [file for files in self._fetcher.threads.parallel(calls) for file in files]

    def _note(self, files: Iterable[LTXFileInfo]) -> None:
        for file in files:
            if file.min_txid > self._starts.get(file.level, 0):
                self._starts[file.level] = file.min_txid

"""A faulty client with the optional parts of clients: lists all levels at once, reads a file by its name."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import get_args

from litevfs.errors import StorageNotFoundError
from litevfs.ltx.file_info import LEVELS, LTXFileInfo
from litevfs.testing.faults import DataKind, Request
from litevfs.testing.faulty import FaultyReplicaClient


class FaultyNamesClient(FaultyReplicaClient):
    """A `FaultyReplicaClient` with `ListsLevels` and `ReadsNamed`, whatever the client that it passes calls on to has.

    A listing of all levels counts as one call without a level; it shows what faulty listings of each level show.
    """

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`."""
        request = Request(time.monotonic(), "list", None, min_txid)
        self._begin(request)
        files = self._told(request, level, min_txid)
        files = [*files, *(file for above in LEVELS[level + 1 :] for file in self._told(request, above, 1))]
        self._end(request)
        return files, True

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`. It gives the time of the write to a second."""
        request = Request(time.monotonic(), "read", level, min_txid, 0, size, max_txid)
        try:
            self._begin(request)
        except StorageNotFoundError:
            return None
        listed = [
            f for f in self._inner.list_files(level, min_txid) if (f.min_txid, f.max_txid) == (min_txid, max_txid)
        ]
        if not listed:
            return None
        try:
            data = self._inner.read(listed[0], 0, size, timeout_s=timeout_s)
        except StorageNotFoundError:
            return None
        for fault in self._faults.roll(request, get_args(DataKind)):
            data = self._faults.damage(fault.kind, data)
        self._end(request)
        return replace(listed[0], modified_ms=listed[0].modified_ms // 1000 * 1000), data

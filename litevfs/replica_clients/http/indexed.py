"""A client that keeps an `index.json` beside what it writes, for readers behind a plain web server (`http.index`).

Owns when the index is written: by a thread, after a file was stored, and before one is deleted. Knows nothing of the
storage but that it keeps objects beside the levels.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import Any, BinaryIO

from litevfs.concurrency.condition import Condition
from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.workers import start_thread
from litevfs.errors import OptionError, StorageClosedError, StorageError, StorageNotFoundError, StorageTimeoutError
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient, SideObject, SideObjects
from litevfs.replica_clients.http.index import INDEX_NAME, write_index

logger = logging.getLogger(__name__)

_LIST_AGAIN_S = 60.0
"""A listing older than this is repeated before an index is written: other programs write and delete files, too."""
_WRITTEN = re.compile(rb'"written_ms":\s*(\d{1,15})')
_DELETE_TIMEOUT_S = 30.0
_Key = tuple[int, int, int]


class IndexedReplicaClient:
    """`client`, with an index of its files written at most every `interval_s` seconds while they change.

    Everything else is the client's own. Raises OptionError for a storage that keeps no objects beside the levels.
    """

    def __init__(self, client: ReplicaClient, *, interval_s: float = 0.0) -> None:
        if not isinstance(client, SideObjects):
            raise OptionError(
                f"no index can be written to {client.url}", hint="its storage keeps no objects beside LTX"
            )
        self._client = client
        self._objects: SideObjects = client
        self._interval_s = interval_s
        self._change = Condition()
        self._files: dict[_Key, LTXFileInfo] | None = None  # None until they are listed
        self._listed = 0.0  # monotonic
        self._recent: dict[_Key, LTXFileInfo | None] = {}  # written and (None) deleted since the last listing began
        self._wanted = self._written = 0  # counts of changes
        self._written_ms: int | None = None  # of the newest index; None before it was read
        self._error: StorageError | None = None  # of the last try, if it failed
        self._is_closed = self._has_thread = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client!r})"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    # From Python 3.12 on, a protocol is looked for without `__getattr__`: these are for the lease.

    @property
    def keeps_conditions(self) -> bool:
        """See `SideObjects.keeps_conditions`."""
        return self._objects.keeps_conditions

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`."""
        return self._objects.read_object(name)

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`."""
        return self._objects.put_object(name, data, if_match=if_match, if_absent=if_absent)

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`."""
        self._objects.delete_object(name)

    @property
    def url(self) -> str:
        """See `ReplicaClient.url`."""
        return self._client.url

    @property
    def block_size(self) -> int:
        """See `ReplicaClient.block_size`."""
        return self._client.block_size

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. What the storage says, not the index."""
        return self._client.list_files(level, min_txid)

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`."""
        return self._client.read(file, offset, size, timeout_s=timeout_s)

    def write(
        self,
        level: int,
        min_txid: int,
        max_txid: int,
        data: bytes | BinaryIO,
        timestamp_ms: int,
        *,
        exclusive: bool = False,
    ) -> LTXFileInfo:
        """See `ReplicaClient.write`. The index follows; nothing here waits for it."""
        file = self._client.write(level, min_txid, max_txid, data, timestamp_ms, exclusive=exclusive)
        with self._change:
            self._note(file.place, file)
            self._want()
        return file

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. First the index is written without them; raises what that raises."""
        files = list(files)
        if not files:
            return
        with self._change:
            for file in files:
                self._note(file.place, None)
            self._want()
        self.flush(_DELETE_TIMEOUT_S)
        self._client.delete(files)

    def key(self, file: LTXFileInfo) -> str:
        """See `ReplicaClient.key`."""
        return self._client.key(file)

    def update(self) -> None:
        """Have an index written although no file has changed."""
        with self._change:
            self._want()

    def flush(self, timeout_s: float) -> None:
        """Return when the index shows every change up to now. Raises StorageError when `timeout_s` is over."""
        with self._change:
            wanted = self._wanted
            self._change.wait_for(lambda: self._written >= wanted or self._is_closed, timeout_s)
            if self._written >= wanted:
                return
            if self._is_closed:
                raise StorageClosedError("the replica client is closed")
            raise self._error or StorageTimeoutError("the index was not written in time", key=INDEX_NAME)

    def close(self) -> None:
        """See `ReplicaClient.close`. What is not in the index by now is not in it: see `flush`."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._client.close()

    def _want(self) -> None:
        if self._is_closed:
            raise StorageClosedError("the replica client is closed")
        if not self._has_thread:
            start_thread(self._run, "litevfs-index")
            self._has_thread = True
        self._wanted += 1
        self._change.notify_all()

    def _run(self) -> None:
        backoff, pause_s = Backoff(), 0.0
        while True:
            with self._change:
                self._change.wait_for(lambda: self._is_closed, pause_s)
                self._change.wait_for(lambda: self._is_closed or self._wanted > self._written)
                if self._is_closed:
                    return
            try:
                self._write_once()
            except StorageClosedError:
                return
            except StorageError as error:
                with self._change:
                    self._error = error
                logger.warning("the index of %s cannot be written, readers of it see nothing new: %s", self.url, error)
                pause_s = backoff.after(error)
            except Exception:  # a defect, or want of memory, must not end the thread without a word
                logger.exception("the index of %s cannot be written, readers of it see nothing new", self.url)
                pause_s = backoff.next_s()
            else:
                backoff.reset()
                pause_s = self._interval_s

    def _write_once(self) -> None:
        if self._files is None or time.monotonic() - self._listed > _LIST_AGAIN_S:
            self._list()
        with self._change:
            files = list((self._files or {}).values())
            wanted = self._wanted
        is_hex = any(len(self._client.key(file).split("/")[-2]) == 4 for file in files[:1])
        written_ms = max(int(time.time() * 1000), self._last_written_ms() + 1)
        self._objects.put_object(INDEX_NAME, write_index(files, written_ms, hex_levels=is_hex))
        with self._change:
            self._written_ms, self._written, self._error = written_ms, wanted, None
            self._change.notify_all()

    def _list(self) -> None:
        with self._change:
            self._recent.clear()
        self._listed = time.monotonic()
        try:
            listed = {file.place: file for level in LEVELS for file in self._client.list_files(level)}
        except StorageNotFoundError:  # the first file will make the folder
            listed = {}
        with self._change:
            self._files = listed
            for key, file in self._recent.items():  # changes that the listing may have missed
                self._note(key, file)

    def _note(self, key: _Key, file: LTXFileInfo | None) -> None:
        self._recent[key] = file
        if self._files is None:
            return
        if file is None:
            self._files.pop(key, None)
        else:
            self._files[key] = file

    def _last_written_ms(self) -> int:
        if self._written_ms is not None:
            return self._written_ms
        there = self._objects.read_object(INDEX_NAME)
        found = _WRITTEN.search(there.data[:1000]) if there is not None else None
        return int(found[1]) if found else 0

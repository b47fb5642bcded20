"""One reader of the replica LITESTREAM_REPLICA_URL in a process of its own: `peer_process.py litevfs|peer`.

Commands come as JSON lines on stdin, answers go to stdout, so that litevfs and Litestream's VFS are asked the same
things in the same words. Nothing here judges an answer. Errors are answers: `{"error": {"type": ..., "text": ...}}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from typing import Any
from urllib.parse import urlencode

import apsw

READ_ONLY = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
PEER_ENTRY_POINT = "sqlite3_litestreamvfs_init"
VFS = "litestream"  # the name that both register
TICK_S = 0.01


class Reader:
    """Connections to one replica, and the VFS's file without SQLite around it."""

    def __init__(self, kind: str) -> None:
        self._connections: list[apsw.Connection] = []
        self._load_peer() if kind == "peer" else self._register_litevfs()
        self._files = FileKeeper(VFS)

    def _load_peer(self) -> None:
        import litestream_vfs  # not everywhere: the error is the answer

        self._loader = apsw.Connection(":memory:")
        self._loader.enable_load_extension(True)
        self._loader.load_extension(os.path.splitext(litestream_vfs.loadable_path())[0], PEER_ENTRY_POINT)  # noqa: PTH122
        self.version = version("litestream-vfs")

    def _register_litevfs(self) -> None:
        import litevfs

        litevfs.register()
        self.version = version("litevfs") if _is_installed("litevfs") else ""

    def begin(self, environment: dict[str, str]) -> dict[str, Any]:
        """Turn to the replica of `environment`: for litevfs only, the peer reads its environment once."""
        os.environ.clear()
        os.environ.update(environment)
        return {}

    def end(self) -> dict[str, Any]:
        """Close all connections, and the file."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._files.close()
        return {}

    def open(self, options: dict[str, str], count: int = 1) -> dict[str, Any]:
        """Open connections and read something, since the peer reads nothing before it is asked to."""
        start = time.perf_counter()
        opened = [apsw.Connection(_uri(options), flags=READ_ONLY, vfs=VFS) for _ in range(count)]
        self._connections += opened
        for connection in opened:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return {"seconds": time.perf_counter() - start}

    def query(self, sql: str, connection: int = 0) -> dict[str, Any]:
        """All rows."""
        return {"rows": self._connections[connection].execute(sql).fetchall()}

    def published(self) -> dict[str, Any]:
        """The TXID that the next transaction would see."""
        return {"txid": self._published()}

    def wait(self, txid: int, timeout_s: float) -> dict[str, Any]:
        """The published TXID once it is `txid` or later, or after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while (published := self._published()) < txid and time.monotonic() < deadline:
            time.sleep(TICK_S)
        return {"txid": published}

    def _published(self) -> int:
        connection = self._connections[0]
        # Within a transaction litevfs' TXID is that of the transaction; the status, which the peer has not, tells more.
        status = connection.pragma("litestream_status")
        return int(json.loads(status)["txid"] if status else connection.pragma("litestream_txid"), 16)

    def cache_misses(self) -> dict[str, Any]:
        """How many pages SQLite asked the VFS for so far, on the first connection."""
        return {"pages": self._connections[0].status(apsw.SQLITE_DBSTATUS_CACHE_MISS)[0]}

    def die(self) -> None:
        """End without an answer."""
        os._exit(1)

    # --- the file, as SQLite sees it ----------------------------------------------------------------------------------

    def file_open(self, options: dict[str, str]) -> dict[str, Any]:
        """Open the VFS's file, to be used by the commands below."""
        with suppress(apsw.CantOpenError):
            apsw.Connection(_uri(options), flags=READ_ONLY, vfs=self._files.name)
        return {"is_open": self._files.file is not None}

    @property
    def _file(self) -> apsw.VFSFile:
        assert self._files.file is not None
        return self._files.file

    def file_lock(self) -> dict[str, Any]:
        """Take the SHARED lock, as a read transaction does."""
        self._file.xLock(apsw.SQLITE_LOCK_SHARED)
        return {}

    def file_unlock(self) -> dict[str, Any]:
        """Let the lock go."""
        self._file.xUnlock(apsw.SQLITE_LOCK_NONE)
        return {}

    def file_size(self, calls: int = 1) -> dict[str, Any]:
        """Bytes, and microseconds of one call (the fastest of several runs)."""
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(calls):
                size = self._file.xFileSize()
            times.append((time.perf_counter() - start) / calls)
        return {"bytes": size, "microseconds": min(times) * 1e6}

    def file_read(self, amount: int, offset: int) -> dict[str, Any]:
        """Bytes of the file, in hexadecimal digits."""
        return {"hex": self._file.xRead(amount, offset).hex()}


class FileKeeper(apsw.VFS):
    """Opens a file of the VFS under test and keeps it; only SQLite itself makes names with URI parameters, so it asks.

    SQLite is then told that there is no such file: the peer does not let it open anything else.
    """

    def __init__(self, vfs: str) -> None:
        self.name = f"keeper of {vfs}"
        self.file: apsw.VFSFile | None = None
        self._kept = vfs
        super().__init__(self.name, base=vfs)

    def close(self) -> None:
        """Close the file, if there is one."""
        file, self.file = self.file, None
        if file is not None:
            file.xClose()

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        self.file = apsw.VFSFile(self._kept, name, flags)
        raise apsw.CantOpenError("kept")


def _uri(options: dict[str, str]) -> str:
    return f"file:replica.db?{urlencode(options)}"


_answers = sys.stdout


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True


def _error(error: Exception) -> dict[str, Any]:
    return {"error": {"type": type(error).__name__, "text": str(error)}}


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=_answers, flush=True)


def main() -> None:
    global _answers
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the peer writes its log to stdout
    try:
        reader = Reader(sys.argv[1])
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
        _answer(_error(error))
        os._exit(1)
    _answer({"version": reader.version})
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = getattr(reader, arguments.pop("do"))(**arguments)
        except Exception as error:  # noqa: BLE001
            answer = _error(error)
        _answer(answer)
    os._exit(0)  # past the peer's own threads


if __name__ == "__main__":
    main()

"""A competitor's process: `_worker.py KIND TARGET`. Commands come as JSON lines on stdin, answers go to stdout.

`open` (count), `run` (sql, parameters), `close`; for the kind "download" `download` (file) instead. Times are taken
here, around nothing but the work.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import Any

import apsw
from _competitors import digest

READ_ONLY = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
PEER_ENTRY_POINT = "sqlite3_litestreamvfs_init"


class Reader:
    """Connections of one kind; queries go to the first."""

    def __init__(self, kind: str, target: str) -> None:
        self._kind = kind
        self._target = target
        self._connections: list[apsw.Connection] = []
        if kind == "peer":
            self._load_peer()
        elif kind == "litevfs":
            import litevfs

            self._connect = litevfs.connect

    def _load_peer(self) -> None:
        import litestream_vfs  # not everywhere: the error is the answer

        self._loader = apsw.Connection(":memory:")
        self._loader.enable_load_extension(True)
        self._loader.load_extension(os.path.splitext(litestream_vfs.loadable_path())[0], PEER_ENTRY_POINT)  # noqa: PTH122

    def _open_one(self) -> apsw.Connection:
        if self._kind == "litevfs":
            return self._connect(self._target)
        if self._kind == "peer":
            return apsw.Connection("file:replica.db?vfs=litestream", flags=READ_ONLY)
        return apsw.Connection(self._target, flags=READ_ONLY)

    def open(self, count: int = 1) -> dict[str, Any]:
        start = time.perf_counter()
        self._connections += [self._open_one() for _ in range(count)]
        for connection in self._connections[-count:]:
            connection.execute("SELECT count(*) FROM sqlite_schema").get  # noqa: B018 (the peer reads nothing before)
        return {"seconds": time.perf_counter() - start}

    def run(self, sql: str, parameters: list[list[object]]) -> dict[str, Any]:
        execute = self._connections[0].execute
        answers = []
        start = time.perf_counter()
        for values in parameters:
            answers.append(execute(sql, values).get)  # noqa: PERF401 (all competitors alike)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "digest": digest(answers)}

    def close(self) -> dict[str, Any]:
        while self._connections:
            self._connections.pop().close()
        return {}


class Downloader:
    """boto3's own parallel download, into memory."""

    def __init__(self, target: str) -> None:
        import boto3
        from botocore.config import Config

        config = Config(s3={"addressing_style": "path"}, max_pool_connections=16)
        self._client = boto3.client("s3", endpoint_url=target, config=config)

    def download(self, bucket: str, key: str, part_bytes: int) -> dict[str, Any]:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=16, io_chunksize=1 << 20
        )
        content = io.BytesIO()
        start = time.perf_counter()
        self._client.download_fileobj(bucket, key, content, Config=config)
        return {"seconds": time.perf_counter() - start, "bytes": len(content.getbuffer())}


def main() -> None:
    kind, target = sys.argv[1:]
    try:
        worker: Any = Downloader(target) if kind == "download" else Reader(kind, target)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return
    print(json.dumps({"sqlite": f"{apsw.sqlite_lib_version()} {apsw.sqlite3_sourceid()}"}), flush=True)
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = getattr(worker, arguments.pop("do"))(**arguments)
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

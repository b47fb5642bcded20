"""A replica that is one LTX file, on a real S3 server behind a proxy that delays and counts every request.

The server is MinIO where there is one, else moto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _competitors import Competitor
from _databases import TIMESTAMP_MS

from litevfs.ltx import format_file_name
from litevfs.testing.s3_proxy import HTTPProxy, RecordedRequest, running_s3_proxy
from litevfs.testing.s3_server import S3Server, running_s3_server
from litevfs.units import format_timestamp

SMALL_ROWS = 20_000
"""Just enough for an LTX file of more than 1 MiB, which is not read whole by opening it."""
DELAY_S = 0.02
"""Of each request, where a benchmark says nothing else."""
_PATH = "orders"
_BUCKET = "bench"
_KEY = f"{_PATH}/0009/{format_file_name(1, 1)}"
_PART_BYTES = 8 << 20
"""Of the plain download: boto3's default, and the fastest of 1, 2, 4, 8 and 16 MiB here."""


@dataclass(frozen=True, slots=True)
class S3Replica:
    """The replica, as its readers reach it."""

    server: S3Server
    proxy: HTTPProxy
    size: int  # bytes of the LTX file

    @property
    def url(self) -> str:
        """Through the proxy."""
        return self.server.url(_BUCKET, _PATH, endpoint=self.proxy.endpoint)

    @property
    def environment(self) -> dict[str, str]:
        """What a reader needs."""
        return dict(self.server.environment())

    @contextmanager
    def opened(self, environment: dict[str, str] | None = None) -> Iterator[Competitor]:
        """litevfs with a connection that has read nothing but what opening takes; requests are counted from here on."""
        with Competitor("litevfs", self.url, self.environment | (environment or {})) as competitor:
            competitor.call("open")
            self.proxy.clear()
            yield competitor

    def gets(self) -> list[RecordedRequest]:
        """The reads of the LTX file that were counted; polls are none."""
        return [request for request in self.proxy.requests if request.path.endswith(_KEY)]

    def download(self, times: int = 1) -> float:
        """Seconds of the last of so many plain parallel downloads of the LTX file; the first one connects, too."""
        with Competitor("download", self.proxy.endpoint, self.environment) as download:
            for _ in range(times):
                answer = download.call("download", bucket=_BUCKET, key=_KEY, part_bytes=_PART_BYTES)
        if answer["bytes"] != self.size:
            raise AssertionError(f"downloaded {answer['bytes']} of {self.size} bytes")
        return float(answer["seconds"])


@contextmanager
def running_replica(ltx_file: Path, delay_s: float = 0.0) -> Iterator[S3Replica]:
    """The server with this file, and the proxy, until the block ends."""
    with running_server(ltx_file) as server, running_s3_proxy(server.endpoint, delay_s=delay_s) as proxy:
        yield S3Replica(server, proxy, ltx_file.stat().st_size)


@contextmanager
def running_server(ltx_file: Path) -> Iterator[S3Server]:
    """The server with this file where Litestream would put it."""
    with running_s3_server() as server:
        client = server.boto3_client()
        client.create_bucket(Bucket=_BUCKET)
        metadata = {"litestream-timestamp": format_timestamp(TIMESTAMP_MS)}
        client.upload_file(str(ltx_file), _BUCKET, _KEY, ExtraArgs={"Metadata": metadata})
        client.close()
        yield server


def replica_url(server: S3Server) -> str:
    """The replica past any proxy."""
    return server.url(_BUCKET, _PATH)


def bytes_of(requests: Iterable[RecordedRequest]) -> int:
    """Bytes that these requests ask for by their Range headers."""
    return sum(map(_range_bytes, requests))


def _range_bytes(request: RecordedRequest) -> int:
    first, _, last = (request.range or "").removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1 if first else 0

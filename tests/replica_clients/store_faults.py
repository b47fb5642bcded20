"""The faults that are injected between a client and its server: into HTTP by request, into other protocols by bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

from litevfs.errors import (
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.testing.http_faults import HTTPFault
from litevfs.testing.s3_proxy import HTTPProxy
from litevfs.testing.tcp_proxy import TCPProxy
from tests.replica_clients.stores import Proxy

HANG_MS = 60_000
DATA = random.Random(5).randbytes(500_000)
"""The content of the file that the faulty reads are of."""
READ_FAULTS: dict[str, tuple[HTTPFault, type[StorageError]]] = {
    "500": (HTTPFault(status=500), TransientStorageError),
    "503": (HTTPFault(status=503, retry_after_s=7), TransientStorageError),
    "429": (HTTPFault(status=429, retry_after_s=7), TransientStorageError),
    "504": (HTTPFault(status=504), StorageTimeoutError),
    "400": (HTTPFault(status=400), StorageError),
    "403": (HTTPFault(status=403), StoragePermissionError),
    "404": (HTTPFault(status=404), StorageNotFoundError),
    "drop": (HTTPFault(drop_connection="before"), TransientStorageError),
    "drop in body": (HTTPFault(drop_connection="body"), TransientStorageError),
    "cut": (HTTPFault(truncate_body_bytes=10), TransientStorageError),
}
"""What a client makes of each fault."""
CUT_BYTES = {"drop": 0, "drop in body": 100_000, "cut": 30_000}
"""For protocols that are not HTTP: after how many bytes the connection ends."""
PASSING_FAULTS: dict[str, list[HTTPFault]] = {
    "server errors": [HTTPFault(status=status, count=2) for status in (500, 503, 429)],
    "time over": [HTTPFault(status=504, count=2)],
    "slow": [HTTPFault(delay_ms=20, jitter_ms=60)],
    "drops": [HTTPFault(drop_connection="before", count=3), HTTPFault(drop_connection="body", count=3)],
    "cut bodies": [HTTPFault(truncate_body_bytes=size, count=2) for size in (0, 1, 1000)],
    "damaged bodies": [HTTPFault(corrupt_body=True, count=1, path="*.ltx*")],
    "one in four": [
        HTTPFault(status=503, count=1),
        HTTPFault(status=500, probability=0.15, count=30),
        HTTPFault(drop_connection="body", probability=0.1, count=20),
    ],
}
"""Faults that a reader gets over, each with what it is over by: a count, or that it is only slow."""


def inject(proxy: Proxy, name: str) -> None:
    """Let the next read meet the fault of this name, and for HTTP all later ones."""
    if isinstance(proxy, HTTPProxy):
        proxy.faults.add(READ_FAULTS[name][0])
    else:
        proxy.cut_after(CUT_BYTES[name])


def hang(proxy: Proxy) -> None:
    """Let the server answer nothing from now on."""
    if isinstance(proxy, HTTPProxy):
        proxy.faults.add(HTTPFault(delay_ms=HANG_MS))
    else:
        proxy.hold()


def clear(proxy: Proxy) -> None:
    """End all faults; requests that are under way stay as they are."""
    if isinstance(proxy, HTTPProxy):
        proxy.faults.clear()
    else:
        proxy.release()


def pass_faults(proxy: Proxy, name: str, seed: int) -> Callable[[], bool]:
    """Begin the passing faults of this name; the result says whether any of them happened so far."""
    if isinstance(proxy, HTTPProxy):
        faults = proxy.faults
        faults.clear()
        before = faults.happened.total()
        faults.add(*PASSING_FAULTS[name])
        return lambda: faults.happened.total() > before
    return _pass_tcp_faults(proxy, name, random.Random(seed))


def _pass_tcp_faults(proxy: TCPProxy, name: str, rng: random.Random) -> Callable[[], bool]:
    if name == "slow":
        proxy.delay_s = 0.05
        return lambda: True
    before = proxy.happened
    if name == "damaged bodies":
        proxy.corrupt_after(rng.randrange(60_000, 200_000))
    elif name == "drops":
        proxy.cut_after(0)
    else:
        proxy.cut_after(rng.randrange(300_000))
    return lambda: proxy.happened > before

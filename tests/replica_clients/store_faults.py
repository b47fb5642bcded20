"""Faults that every client which speaks HTTP must tell apart, and get over. A proxy lies before the server."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from litevfs.errors import (
    StorageClosedError,
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.base import ReplicaClient
from litevfs.testing.conformance_base import TIMESTAMP_MS, ReplicaUnderTest, file_name
from litevfs.testing.http_faults import HTTPFault
from litevfs.testing.s3_proxy import HTTPProxy

READ_FAULTS: list[tuple[HTTPFault, type[StorageError]]] = [
    (HTTPFault(status=500), TransientStorageError),
    (HTTPFault(status=503, retry_after_s=7), TransientStorageError),
    (HTTPFault(status=429, retry_after_s=7), TransientStorageError),
    (HTTPFault(status=504), StorageTimeoutError),
    (HTTPFault(status=400), StorageError),
    (HTTPFault(status=403), StoragePermissionError),
    (HTTPFault(status=404), StorageNotFoundError),
    (HTTPFault(drop_connection="before"), TransientStorageError),
    (HTTPFault(drop_connection="body"), TransientStorageError),
    (HTTPFault(truncate_body_bytes=10), TransientStorageError),
]
each_read_fault = pytest.mark.parametrize(
    ("fault", "kind"),
    READ_FAULTS,
    ids=[f"{fault.status or fault.drop_connection or 'cut'}" for fault, _ in READ_FAULTS],
)


def check_read_fault(replica: ReplicaUnderTest, proxy: HTTPProxy, fault: HTTPFault, kind: type[StorageError]) -> None:
    """A read and a listing that meet `fault` raise `kind`, about the file; the next ones are right."""
    data = random.Random(5).randbytes(5000)
    replica.put(0, file_name(1, 1), data)
    client = replica.new_client()
    try:
        (file,) = client.list_files(0)
        proxy.faults.add(fault)
        with pytest.raises(StorageError) as caught:
            client.read(file, 1, 4000)
        assert type(caught.value) is kind
        assert file_name(1, 1) in str(caught.value)
        if fault.retry_after_s is not None:
            assert isinstance(caught.value, TransientStorageError)
            assert caught.value.retry_after_s == 7
        proxy.faults.clear()
        assert client.read(file, 1, 4000) == data[1:4001]
        if kind is TransientStorageError:
            proxy.faults.add(fault)
            with pytest.raises(TransientStorageError):
                client.list_files(0)
            proxy.faults.clear()
            assert client.list_files(0) == [file]
    finally:
        proxy.faults.clear()
        client.close()


def check_write_fault(replica: ReplicaUnderTest, proxy: HTTPProxy, fault: HTTPFault) -> None:
    """A write that meets `fault` raises, leaves what was there, and the next one succeeds."""
    client = replica.new_client()
    try:
        client.write(0, 1, 1, b"before", TIMESTAMP_MS)
        proxy.faults.add(fault)
        with pytest.raises(TransientStorageError):
            client.write(0, 1, 1, b"after", TIMESTAMP_MS)
        proxy.faults.clear()
        assert replica.get(0, file_name(1, 1)) in (b"before", b"after")
        client.write(0, 1, 1, b"at last", TIMESTAMP_MS)
        assert replica.get(0, file_name(1, 1)) == b"at last"
    finally:
        proxy.faults.clear()
        client.close()


def check_close_ends_a_read(replica: ReplicaUnderTest, client: ReplicaClient, hang: Callable[[], Any]) -> None:
    """Closing ends a call that waits for a storage that has begun to hang, within a second."""
    replica.put(0, file_name(1, 1), b"x" * 5000)
    (file,) = client.list_files(0)
    assert client.read(file, 0, 5) == b"x" * 5
    hang()
    raised: list[StorageError] = []

    def read() -> None:
        try:
            client.read(file)
        except StorageError as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    began = time.monotonic()
    client.close()
    thread.join(10)
    assert time.monotonic() - began < 1
    assert [type(error) for error in raised] == [StorageClosedError]


def check_read_ends_in_time(replica: ReplicaUnderTest, client: ReplicaClient, hang: Callable[[], Any]) -> None:
    """A read with a time limit ends by then though the storage has begun to hang."""
    replica.put(0, file_name(1, 1), b"x" * 5000)
    (file,) = client.list_files(0)
    assert client.read(file, 0, 5, timeout_s=20.0) == b"x" * 5  # type: ignore[call-arg]
    hang()
    began = time.monotonic()
    with pytest.raises(StorageTimeoutError):
        client.read(file, timeout_s=0.3)  # type: ignore[call-arg]
    assert time.monotonic() - began < 5

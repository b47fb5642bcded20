"""Reads, writes and deletes with every S3 server of the table of oddities."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from litevfs.errors import StorageFileExistsError, StorageNotFoundError
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.odd_s3_server import (
    ACCESS_KEY,
    BUCKET,
    PAGE_KEYS,
    SECRET_KEY,
    SESSION_TOKEN,
    OddS3Server,
    running_odd_s3_server,
)
from litevfs.testing.s3_oddities import ODDITIES, Oddity

pytestmark = [pytest.mark.s3]

PATH = "a b/ü+&"  # what an encoding of keys can go wrong with


@pytest.fixture
def connect(credentials: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """Starts a server with an oddity; gives it and a client of a replica on it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    with ExitStack() as stack:

        def connect(oddity: Oddity) -> tuple[OddS3Server, S3ReplicaClient]:
            server = stack.enter_context(running_odd_s3_server(oddity))
            query = "&requestPayer=requester" * oddity.wants_payer + "&anonymous=true" * oddity.is_public
            url = f"s3://{BUCKET}/a%20b/%C3%BC%2B&?endpoint={server.endpoint}{query}"
            client = S3ReplicaClient(url, read_timeout_s=5)
            stack.callback(client.close)
            return server, client

        yield connect


def name(txid: int) -> str:
    return f"{txid:016x}-{txid:016x}.ltx"


@pytest.mark.parametrize("oddity", ODDITIES, ids=lambda oddity: oddity.name)
def test_reads_writes_and_deletes(connect: Callable[..., object], oddity: Oddity):
    server, client = connect(oddity)
    content = bytes(range(256)) * 4
    count = 2 * PAGE_KEYS + 1
    for txid in range(1, count + 1):
        file = client.write(0, txid, txid, content + bytes([txid]), 1_767_323_045_678, exclusive=True)
        assert file.size == 1025
    assert sorted(server.objects) == [f"{PATH}/0000/{name(txid)}" for txid in range(1, count + 1)]
    assert server.objects[f"{PATH}/0000/{name(2)}"].data == content + b"\x02"

    files = client.list_files(0)
    assert [file.min_txid for file in files] == list(range(1, count + 1))
    assert {file.size for file in files} == {1025}
    assert all(abs(file.modified_ms / 1000 - time.time()) < 60 for file in files)
    assert [file.min_txid for file in client.list_files(0, 4)] == [4, 5]
    assert client.list_files(3) == []

    for file in files[:2]:
        assert client.read(file) == content + bytes([file.max_txid])
        assert client.read(file, 256, 300) == content[256:556]
        assert client.read(file, 1000, 500) == content[1000:] + bytes([file.max_txid])
        assert client.read(file, 1025, 10) == b""

    with pytest.raises(StorageFileExistsError):
        client.write(0, 1, 1, b"other", 0, exclusive=True)
    assert server.objects[f"{PATH}/0000/{name(1)}"].data == content + b"\x01"

    client.delete(files[:3])
    client.delete(files[3:4])
    assert sorted(server.objects) == [f"{PATH}/0000/{name(5)}"]
    with pytest.raises(StorageNotFoundError):
        client.read(files[0])
    client.delete(files)
    assert not server.objects


@pytest.mark.parametrize("oddity", ODDITIES, ids=lambda oddity: oddity.name)
def test_what_is_found_out_is_remembered(connect: Callable[..., object], oddity: Oddity):
    """The second time, no request is refused."""
    _, client = connect(oddity)
    files = [client.write(0, txid, txid, b"x", 0, exclusive=True) for txid in range(1, 9)]
    client.list_files(0)
    client.delete(files[:2])
    before = dict(client.requests)
    client.write(0, 9, 9, b"x", 0, exclusive=True)
    client.read(files[4])
    client.delete(files[2:4])
    after = {kind: client.requests[kind] - before.get(kind, 0) for kind in client.requests}
    asks_first = oddity.condition in ("400", "405", "501")
    deletes_each = oddity.batch_delete in ("501", "400", "405", "404")
    assert (after["PUT"], after["GET"]) == (1, 1)
    assert after["DELETE"] == (2 if deletes_each else 1)
    assert bool(after["LIST"]) == asks_first


def test_the_status_names_what_is_worked_around(connect: Callable[..., object]):
    (oddity,) = [oddity for oddity in ODDITIES if oddity.name == "many at once"]
    _, client = connect(oddity)
    assert client.workarounds == ()
    files = [client.write(0, txid, txid, b"x", 0, exclusive=True) for txid in (1, 2)]
    client.delete(files)
    assert [text.partition(":")[0] for text in client.workarounds] == [
        "no conditional writes",
        "no DeleteObjects",
        "no ListObjectsV2",
    ]


def test_a_redirect_from_tls_to_plain_text_is_not_followed(credentials: object):
    client = S3ReplicaClient("s3://bucket/db?endpoint=https://s3.example")
    url = client.access.object_url("db/0000/x")
    assert client.access.follow(url, "http://elsewhere/bucket/db/0000/x") is None
    assert client.access.follow(url, "https://user@elsewhere/bucket/db/0000/x") is None
    assert client.access.follow(url, "https://elsewhere/bucket/db/0000/x") == "https://elsewhere/bucket/db/0000/x"
    assert client.access.object_url("db/0000/y") == "https://elsewhere/bucket/db/0000/y"
    client.close()

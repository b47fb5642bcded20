"""Writes that replace nothing, on storages that cannot do that in one step."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.errors import StorageError, StorageFileExistsError, StoragePermissionError, TransientStorageError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.s3.client import S3ReplicaClient

NAME = "0000000000000001-0000000000000001.ltx"


def test_a_file_system_without_hard_links_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with closing(FileReplicaClient(tmp_path)) as client:
        client.write(0, 1, 1, b"first", 0, exclusive=True)
        with pytest.raises(StorageFileExistsError):
            client.write(0, 1, 1, b"second", 0, exclusive=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "ltx" / "0").iterdir()} == {NAME: b"first"}


def test_another_failure_of_the_last_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with closing(FileReplicaClient(tmp_path)) as client, pytest.raises(StorageError, match="No space left"):
        client.write(0, 1, 1, b"first", 0, exclusive=True)
    assert list((tmp_path / "ltx" / "0").iterdir()) == []


class Server:
    """A server that stores one object, and answers a condition as told."""

    def __init__(self, refusal: tuple[str, str]) -> None:
        self.refusal = refusal
        self.is_stored = False
        self.methods: list[str] = []

    def __call__(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        self.methods.append(method + (" conditional" if "if-none-match" in headers else ""))
        if method == "GET":
            contents = (
                f"<Contents><Key>db/0000/{NAME}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>"
                "<ETag>&quot;e&quot;</ETag><Size>5</Size></Contents>"
            )
            return _answer("200 OK", f"<ListBucketResult>{contents * self.is_stored}</ListBucketResult>")
        if "if-none-match" in headers:
            assert headers["if-none-match"] == "*"
            status, code = self.refusal
            return _answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>")
        self.is_stored = True
        return _answer("200 OK", "")


def _answer(status: str, body: str) -> bytes:
    return f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nETag: "e"\r\n\r\n{body}'.encode()


@pytest.fixture
def connect(scripted_server: Callable[..., object], credentials: tuple[str, str, str]):
    clients: list[S3ReplicaClient] = []

    def connect(server: Server) -> S3ReplicaClient:
        endpoint = scripted_server(server).endpoint
        clients.append(S3ReplicaClient(f"s3://bucket/db?endpoint={endpoint}"))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.mark.s3
@pytest.mark.parametrize(
    "refusal",
    [
        ("501 Not Implemented", "NotImplemented"),
        ("400 Bad Request", "InvalidArgument"),
        ("405 Method Not Allowed", "MethodNotAllowed"),
    ],
)
def test_a_server_that_knows_no_condition_is_looked_at_first(connect, refusal: tuple[str, str]):
    server = Server(refusal)
    client = connect(server)
    assert client.write(0, 1, 1, b"first", 0, exclusive=True).size == 5
    for _ in range(2):
        with pytest.raises(StorageFileExistsError, match=NAME):
            client.write(0, 1, 1, b"other", 0, exclusive=True)
    assert server.methods == ["PUT conditional", "GET", "PUT", "GET", "GET"]


@pytest.mark.s3
@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (("412 Precondition Failed", "PreconditionFailed"), StorageFileExistsError),
        (("409 Conflict", "ConditionalRequestConflict"), TransientStorageError),  # two at once: the next try tells
        (("500 Internal Server Error", "InternalError"), TransientStorageError),
        (("403 Forbidden", "AccessDenied"), StoragePermissionError),
    ],
)
def test_a_refused_condition_stores_nothing_and_says_why(connect, refusal: tuple[str, str], kind: type[StorageError]):
    server = Server(refusal)
    with pytest.raises(kind, match=NAME) as caught:
        connect(server).write(0, 1, 1, b"first", 0, exclusive=True)
    assert type(caught.value) is kind
    assert server.methods == ["PUT conditional"]


class IgnoringServer:
    """A server that ignores the condition of an upload in parts, as some do that keep that of a PUT."""

    def __init__(self) -> None:
        self.is_stored = False
        self.methods: list[str] = []

    def __call__(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        what = "LIST" if "list-type" in target else method + (" conditional" if "if-none-match" in headers else "")
        self.methods.append(what)
        if what == "LIST":
            contents = (
                f"<Contents><Key>db/0000/{NAME}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>"
                "<ETag>&quot;e&quot;</ETag><Size>5</Size></Contents>"
            )
            return _answer("200 OK", f"<ListBucketResult>{contents * self.is_stored}</ListBucketResult>")
        if "uploads" in target:
            body = "<InitiateMultipartUploadResult><UploadId>an-id</UploadId></InitiateMultipartUploadResult>"
            return _answer("200 OK", body)
        if method == "POST":
            self.is_stored = True
            return _answer("200 OK", "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        return _answer("200 OK", "")


@pytest.mark.s3
def test_an_upload_in_parts_looks_before_its_end_as_servers_ignore_that_condition(
    scripted_server: Callable[..., object], credentials: tuple[str, str, str]
):
    server = IgnoringServer()
    endpoint = scripted_server(server).endpoint
    with closing(S3ReplicaClient(f"s3://bucket/db?endpoint={endpoint}", part_size=1000)) as client:
        assert client.write(0, 1, 1, bytes(1500), 0, exclusive=True).size == 1500
        with pytest.raises(StorageFileExistsError, match=NAME):
            client.write(0, 1, 1, bytes(1500), 0, exclusive=True)
    upload = ["POST", "PUT", "PUT", "LIST"]
    assert server.methods == [*upload, "POST conditional", *upload, "DELETE"]

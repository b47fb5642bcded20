"""WebDAV, as rclone serves it."""

from __future__ import annotations

import base64
import email.utils
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from litevfs.errors import (
    ConditionsUnsupportedError,
    StorageError,
    StorageFileExistsError,
    StorageNotFoundError,
    StoragePermissionError,
    TransientStorageError,
)
from litevfs.operations.doctor import Outcome, examine
from litevfs.replica_clients.http.client import HTTPReplicaClient
from litevfs.replica_clients.webdav import WebDAVReplicaClient
from litevfs.testing.client_conformance import ReplicaClientConformance, silent_endpoint
from litevfs.testing.conformance_base import TIMESTAMP_MS, file_name
from tests.replica_clients.interop import exchange
from tests.replica_clients.store_replicas import WebDAVReplica
from tests.replica_clients.store_servers import WEBDAV_PASSWORD, WEBDAV_USER, rclone_webdav


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("served")
    with rclone_webdav(folder, tmp_path_factory.mktemp("rclone")) as endpoint:
        yield endpoint, folder


@pytest.fixture
def webdav_replica(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[WebDAVReplica]:
    monkeypatch.setenv("LITEVFS_WEBDAV_PASSWORD", WEBDAV_PASSWORD)
    replica = WebDAVReplica(*server)
    yield replica
    replica.http.clear()


@pytest.mark.servers
class TestWebDAVReplicaClient(ReplicaClientConformance):
    test_keeps_the_timestamp = None  # WebDAV keeps no time of a client's
    # rclone deletes what a MOVE replaces first, as RFC 4918, 9.9.3, says.
    test_concurrent_reads_see_one_version_while_a_file_is_replaced = None

    @pytest.fixture
    def replica(self, webdav_replica: WebDAVReplica) -> WebDAVReplica:
        return webdav_replica

    @pytest.fixture
    def hanging_client(self) -> Iterator[WebDAVReplicaClient]:
        with silent_endpoint() as silent:
            client = WebDAVReplicaClient(f"webdav://{silent}/silent")
            yield client
            client.close()


@pytest.mark.servers
def test_a_large_file_is_the_first_in_its_folder(webdav_replica: WebDAVReplica):
    """The server answers that there is no folder, and ends the connection, before it has read the file."""
    data = os.urandom(20_000_000)
    client = webdav_replica.new_client()
    for level in (9, 0):
        assert client.read(client.write(level, 1, 1, data, TIMESTAMP_MS)) == data
    client.close()


@pytest.mark.servers
def test_a_wrong_password_is_refused_with_a_hint(webdav_replica: WebDAVReplica, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITEVFS_WEBDAV_PASSWORD", "AKIDSECRET")
    client = webdav_replica.new_client()
    with pytest.raises(StoragePermissionError, match="LITEVFS_WEBDAV_PASSWORD") as caught:
        client.list_files(0)
    client.close()
    assert "AKIDSECRET" not in str(caught.value) + repr(client)


@pytest.mark.servers
def test_litestream_reads_and_continues_what_we_write_and_we_what_it_wrote(
    webdav_replica: WebDAVReplica, tmp_path: Path
):
    replica = {"type": "webdav", "webdav-url": f"http://{webdav_replica.endpoint}", "path": webdav_replica.path}
    replica |= {"webdav-username": WEBDAV_USER, "webdav-password": WEBDAV_PASSWORD}
    exchange(tmp_path, webdav_replica.url, replica)


# --- without a server of theirs ---------------------------------------------------------------------------------------


def listing(answers: str) -> bytes:
    body = f'<?xml version="1.0"?><d:multistatus xmlns:d="DAV:">{answers}</d:multistatus>'.encode()
    return b"HTTP/1.1 207 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_listings_are_read_as_other_servers_write_them(scripted_server):
    """Absolute URLs, weak and missing ETags, properties that are not there, folders that are named like files."""
    answers = "".join(
        f"<d:response><d:href>{href}</d:href><d:propstat><d:prop>{properties}</d:prop>"
        "<d:status>HTTP/1.1 200 OK</d:status></d:propstat><d:propstat><d:prop><d:getetag/></d:prop>"
        "<d:status>HTTP/1.1 404 Not Found</d:status></d:propstat></d:response>"
        for href, properties in [
            ("/db/ltx/0/", "<d:resourcetype><d:collection/></d:resourcetype>"),
            (
                f"http://h/db/ltx/0/{file_name(2, 2)}",
                "<d:getcontentlength>5</d:getcontentlength><d:getetag>W/&quot;a&quot;</d:getetag>",
            ),
            (f"/db/ltx/0/{file_name(1, 1)}", "<d:getcontentlength>7</d:getcontentlength>"),
            (f"/db/ltx/0/{file_name(3, 3)}/", "<d:resourcetype><d:collection/></d:resourcetype>"),
        ]
    )
    server = scripted_server(listing(answers))
    client = WebDAVReplicaClient(f"webdav://{server.endpoint.removeprefix('http://')}/db")
    found = [(file.min_txid, file.size, file.etag) for file in client.list_files(0)]
    client.close()
    assert found == [(1, 7, ""), (2, 5, "a")]


def level_folders(files: str = "") -> bytes:
    is_folder = "<d:resourcetype><d:collection/></d:resourcetype>"
    folders = "".join(
        f"<d:response><d:href>/db/ltx/{name}</d:href><d:propstat><d:prop>{is_folder}</d:prop></d:propstat></d:response>"
        for name in ("", "0/", "9/")
    )
    return listing(folders + files)


def test_a_server_that_lists_no_folder_with_all_below_is_asked_for_each(scripted_server):
    server = scripted_server(lambda *_: b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")
    client = WebDAVReplicaClient(f"webdav://{server.endpoint.removeprefix('http://')}/db")
    with pytest.raises(StoragePermissionError, match="one by one"):
        client.list_from(0)
    assert server.requests[0][2]["depth"] == "infinity"
    missing = b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"
    # As if it had been asked for the folder alone.
    server.answer = lambda method, target, headers: missing if "generations" in target else level_folders()
    assert client.list_from(0) == ([], False)
    server.answer = lambda *_: listing("")
    assert client.list_from(0) == ([], True)
    client.close()


def test_a_body_that_is_too_large_for_the_server_says_what_to_raise(scripted_server):
    server = scripted_server(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
    with pytest.raises(StorageError, match=r"answered 413.*client_max_body_size"):
        client.write(0, 1, 1, b"content", TIMESTAMP_MS)
    client.close()


def answered(status: int) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status


def test_a_file_that_another_writer_moves_into_place_now_is_asked_for_again(scripted_server):
    """The server has decided nothing yet: 423, RFC 4918, 11.3."""
    statuses = {"MKCOL": 405, "PUT": 201, "MOVE": 423, "DELETE": 204}
    server = scripted_server(lambda method, *_: answered(statuses[method]))
    client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
    with pytest.raises(TransientStorageError, match="423"):
        client.write(0, 1, 1, b"content", TIMESTAMP_MS, exclusive=True)
    assert [method for method, *_ in server.requests][-2:] == ["MOVE", "DELETE"]
    statuses["MOVE"] = 412
    with pytest.raises(StorageFileExistsError):
        client.write(0, 1, 1, b"content", TIMESTAMP_MS, exclusive=True)
    client.close()


def test_a_file_that_another_writer_moved_over_ours_is_not_taken_for_ours(scripted_server):
    properties = "<d:getcontentlength>5</d:getcontentlength><d:getetag>a</d:getetag>"
    other = f"<d:href>/db/ltx/0/{file_name(1, 1)}</d:href><d:propstat><d:prop>{properties}</d:prop></d:propstat>"
    found = listing(f"<d:response>{other}</d:response>")
    statuses = {"MKCOL": 405, "PUT": 201, "MOVE": 201}
    server = scripted_server(lambda method, *_: answered(statuses[method]) if method in statuses else found)
    client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
    with pytest.raises(StorageFileExistsError):
        client.write(0, 1, 1, b"content", TIMESTAMP_MS, exclusive=True)
    assert client.write(0, 1, 1, b"other", TIMESTAMP_MS, exclusive=True).etag == "a"
    client.close()


def test_a_folder_that_another_writer_makes_now_is_asked_for_again(scripted_server):
    statuses = {"MKCOL": 423, "PUT": 409, "DELETE": 404, "MOVE": 201, "PROPFIND": 404}
    server = scripted_server(lambda method, *_: answered(statuses[method]))
    client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
    for write in (lambda: client.write(0, 1, 1, b"content", TIMESTAMP_MS), lambda: client.put_object("x", b"content")):
        statuses["PUT"] = 409
        with pytest.raises(TransientStorageError, match="folder"):
            write()
        statuses["PUT"] = 201  # it is there now
        write()
    client.close()


def test_no_object_is_written_with_a_condition(scripted_server):
    """A server that keeps the conditions of one writer after the other may break those of two at once, as Apache's."""
    server = scripted_server(answered(412))
    client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
    with pytest.raises(ConditionsUnsupportedError):
        client.put_object("lock.json", b"{}", if_absent=True)
    with pytest.raises(ConditionsUnsupportedError):
        client.put_object("lock.json", b"{}", if_match="a")
    client.close()
    assert server.requests == []


def test_an_answer_that_is_no_listing_is_refused(scripted_server):
    for body in (b"<html>", b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'):
        server = scripted_server(b"HTTP/1.1 207 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        client = WebDAVReplicaClient(f"webdav://{server.endpoint.removeprefix('http://')}/db")
        with pytest.raises(StorageError, match="sent no listing"):
            client.list_files(0)
        client.close()


@pytest.mark.servers
def test_the_doctor_leaves_no_folder(webdav_replica: WebDAVReplica, server: tuple[str, Path]):
    assert all(check.outcome is not Outcome.FAILED for check in examine(webdav_replica.url))
    assert not [path for path in server[1].rglob("*") if "doctor" in path.name]


@pytest.mark.parametrize("status", [200, 405, 501])
def test_a_server_that_does_not_speak_webdav_is_named(status: int, scripted_server):
    server = scripted_server(answered(status))
    client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
    for call in (lambda: client.list_files(0), lambda: client.write(0, 1, 1, b"content", TIMESTAMP_MS)):
        with pytest.raises(StorageError, match="hint: is it a WebDAV server"):
            call()  # one that answers 200 is a server of files that looks at no method
    client.close()


def test_a_webdav_server_may_answer_405_where_nothing_is(scripted_server):
    options = b"HTTP/1.1 200 OK\r\nDAV: 1, 2\r\nContent-Length: 0\r\n\r\n"
    server = scripted_server(lambda method, *_: options if method == "OPTIONS" else answered(405))
    client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
    assert client.list_files(0) == []
    client.close()


def test_a_refusal_names_a_clock_that_is_off(scripted_server):
    date = email.utils.formatdate(time.time() + 7200, usegmt=True)
    for text, found in (
        (date, "set this machine's clock, which differs from the server's by 7[12][0-9]{2} s; "),
        ("", ""),
    ):
        head = f"HTTP/1.1 403 X\r\nDate: {text}\r\nContent-Length: 0\r\n\r\n"
        server = scripted_server(head.encode())
        client = WebDAVReplicaClient(server.endpoint.replace("http:", "webdav:") + "/db")
        with pytest.raises(StoragePermissionError, match=f"; hint: {found}webdav://"):
            client.list_files(0)
        client.close()


def test_a_password_that_was_changed_is_taken_from_the_variable_once_the_old_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, scripted_server
):
    new = "Basic " + base64.b64encode(b"me:new").decode()

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        if headers.get("authorization") != new:
            return b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n"
        return b"HTTP/1.1 404 X\r\nDAV: 1\r\nContent-Length: 0\r\n\r\n"

    server = scripted_server(answer)
    for kind, scheme, variable in (
        (WebDAVReplicaClient, "webdav", "LITEVFS_WEBDAV_PASSWORD"),
        (HTTPReplicaClient, "http", "LITEVFS_HTTP_PASSWORD"),
    ):
        monkeypatch.setenv(variable, "old")
        client = kind(f"{scheme}://me@{server.endpoint.partition('//')[2]}/db")
        with pytest.raises(StoragePermissionError, match=variable):
            client.list_files(0)
        monkeypatch.setenv(variable, "new")
        with suppress(StorageNotFoundError):  # of a web server, that there is no replica
            client.list_files(0)
        client.close()
        assert server.requests[-1][2]["authorization"] == new

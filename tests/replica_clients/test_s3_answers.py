"""Answers that a sound S3 server does not give: each ends in an error that says what happened, or is seen through."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from litevfs.errors import (
    LitevfsError,
    OptionError,
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.http import connections
from litevfs.replica_clients.s3.client import S3ReplicaClient
from tests.replica_clients.s3_answers import FILE, SSE_KEY, answer, close_after, file_key, listing, part, s3_error

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("credentials")]


# --- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.plan("E05")
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(part(100, 199, Content_Range=""), id="no Content-Range"),
        pytest.param(part(100, 199, Content_Range="pages 100-199/1000"), id="other unit"),
        pytest.param(part(0, 99), id="other start"),
        pytest.param(part(100, 198), id="too short"),
        pytest.param(part(100, 200), id="too long"),
        pytest.param(part(100, 199, Content_Length="99"), id="Content-Length smaller than the range"),
        pytest.param(part(100, 199, total=150), id="past its own total"),
        pytest.param(answer("200 OK", b"x" * 1000, ETag='"the-etag"'), id="whole object instead of the range"),
        pytest.param(answer("200 OK", b"<html>log in</html>" * 30), id="a proxy's page"),
        pytest.param(answer("204 No Content", Content_Length=""), id="no content"),
    ],
)
def test_a_range_answer_that_does_not_fit_names_the_endpoint_and_is_not_tried_again(connect, wrong: bytes):
    client = connect(wrong)
    with pytest.raises(StorageError) as caught:
        client.read(FILE, 100, 100)
    assert type(caught.value) is StorageError
    assert client.server.endpoint in str(caught.value)
    assert "proxy" in str(caught.value)
    assert (caught.value.level, caught.value.min_txid) == (0, 1)
    assert len(client.server.requests) == 1


def test_a_whole_answer_is_taken_when_it_is_what_was_asked_for(connect):
    client = connect(answer("200 OK", b"x" * 1000, ETag='"the-etag"'))
    assert client.read(FILE) == b"x" * 1000
    assert client.read(FILE, 0, 1000) == b"x" * 1000
    assert client.read(FILE, 0, 2000) == b"x" * 1000


def test_a_weak_etag_of_a_proxy_is_the_same_etag(connect):
    client = connect(part(100, 199, ETag='W/"the-etag"'))
    assert client.read(FILE, 100, 100) == b"x" * 100


def test_another_etag_means_the_file_was_replaced(connect):
    client = connect(part(100, 199, ETag='"another"'))
    with pytest.raises(StorageNotFoundError, match="replaced"):
        client.read(FILE, 100, 100)


def test_past_the_end_is_empty_but_a_shrunken_file_is_not(connect):
    client = connect(s3_error("416 Range Not Satisfiable", "InvalidRange"))
    assert client.read(FILE, 1000, 5) == b""
    with pytest.raises(StorageNotFoundError, match="shorter"):
        client.read(FILE, 999, 5)


@pytest.mark.parametrize("sent", [0, 1, 99])
def test_a_body_that_breaks_off_is_transient(connect, sent: int):
    whole = part(100, 199)
    client = connect(close_after(whole[: len(whole) - 100 + sent]))
    with pytest.raises(TransientStorageError, match="broke"):
        client.read(FILE, 100, 100)


def test_a_server_without_tls_is_told_from_its_answer():
    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1 << 16)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"s3://bucket/db?endpoint=127.0.0.1:{listener.getsockname()[1]}"
        with closing(S3ReplicaClient(url)) as client, pytest.raises(TransientStorageError, match="broke") as caught:
            client.list_files(0)
        thread.join()
    assert "endpoint=http://" in str(caught.value.hint)


def test_a_listing_that_breaks_off_is_transient(connect):
    client = connect(close_after(listing(file_key(1))[:-20]))
    with pytest.raises(TransientStorageError, match="broke"):
        client.list_files(0)


def test_no_answer_is_transient(connect):
    client = connect(lambda *_: None)
    for call in (lambda: client.read(FILE), lambda: client.list_files(0), lambda: client.write(0, 1, 1, b"x", 1)):
        with pytest.raises(TransientStorageError, match=re.escape(client.server.endpoint)):
            call()


def test_garbage_instead_of_http_is_transient(connect):
    client = connect(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(TransientStorageError):
        client.read(FILE)


def test_a_silent_server_times_out(connect):
    client = connect(lambda *_: b"hang", read_timeout_s=0.2)
    for call in (lambda: client.read(FILE), lambda: client.list_files(0), lambda: client.write(0, 1, 1, b"x", 1)):
        with pytest.raises(StorageTimeoutError) as caught:
            call()
        assert isinstance(caught.value, TimeoutError)


def dripping(whole: bytes, at_once: int) -> Callable[..., Iterator[bytes]]:
    """So much of an answer, then one byte after the other: each comes soon, the last one after minutes."""
    assert len(whole) - at_once > 100
    return lambda *_: iter([whole[:at_once], *(whole[i : i + 1] for i in range(at_once, len(whole)))])


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in the head", "in the body"])
def test_a_server_that_drips_times_out(connect, where: str):
    pad = {"X_Pad": "x" * 200}
    for whole, call in (
        (part(0, 999, **pad), lambda client: client.read(FILE, 0, 1000)),
        (answer("200 OK", b"<ListBucketResult>" + b" " * 1000, **pad), lambda client: client.list_files(0)),
        (s3_error("400 Bad Request", "InvalidRequest", "x" * 900, **pad), lambda client: client.read(FILE, 0, 1000)),
    ):
        at_once = 40 if where == "in the head" else whole.index(b"\r\n\r\n") + 8
        client = connect(dripping(whole, at_once), read_timeout_s=0.3)
        with pytest.raises(StorageTimeoutError):
            call(client)


def test_a_slow_line_is_no_drip_but_takes_longer_than_a_read_with_a_time_limit_may(connect):
    file = LTXFileInfo(0, 1, 1, 40 << 13, 0, "the-etag")
    whole = part(0, file.size - 1, total=file.size)
    pieces = [whole[start : start + (1 << 13)] for start in range(0, len(whole), 1 << 13)]
    client = connect(lambda *_: iter(pieces), read_timeout_s=0.4)  # 0.8 s at least
    assert client.read(file) == b"x" * file.size
    client = connect(lambda *_: iter(pieces), read_timeout_s=0.4)
    with pytest.raises(StorageTimeoutError):
        client.read(file, 0, file.size, timeout_s=0.4)


def test_a_read_can_have_less_time_than_the_client_gives_it(connect):
    client = connect(lambda *_: b"hang", read_timeout_s=60)
    with pytest.raises(StorageTimeoutError):
        client.read(FILE, 0, 1000, timeout_s=0.2)
    for over in (0, -1.0):
        with pytest.raises(StorageTimeoutError):
            client.read(FILE, 0, 1000, timeout_s=over)
    client = connect(dripping(part(0, 999), 500), read_timeout_s=60)
    with pytest.raises(StorageTimeoutError):
        client.read(FILE, 0, 1000, timeout_s=0.2)


def test_a_connection_is_used_again_after_an_answer_that_was_timed(connect):
    client = connect(lambda method, *_: part(0, 9) if method == "GET" else answer("200 OK", ETag='"e"'))
    for _ in range(3):
        assert client.read(FILE, 0, 10, timeout_s=5) == b"x" * 10
    assert client.write(0, 1, 1, b"x", 1)
    assert client.server.connections == 1


def test_more_time_to_answer_than_a_socket_can_wait_is_no_error(connect):
    never_s = 2**32 / 1000  # in milliseconds and 32 bits: 0
    client = connect(lambda method, *_: part(0, 9) if method == "GET" else answer("200 OK"), read_timeout_s=never_s)
    assert client.read(FILE, 0, 10) == client.read(FILE, 0, 10, timeout_s=never_s) == b"x" * 10
    assert client.write(0, 1, 1, b"x", 1)


def test_no_time_to_answer_is_refused():
    with pytest.raises(OptionError, match="read_timeout"):
        S3ReplicaClient("s3://bucket/db", read_timeout_s=0)


def test_an_upload_answered_by_something_else_names_the_endpoint(connect):
    client = connect(answer("202 Accepted", b"log in" * 30))
    with pytest.raises(StorageError, match="no answer of an S3 server") as caught:
        client.write(0, 1, 1, b"x", 1)
    assert client.server.endpoint in str(caught.value)


def test_a_large_wrong_body_is_not_read(connect):
    """A proxy that answers a range of 10 bytes with the whole object: judged by its head, at once."""
    head = answer("200 OK", ETag='"the-etag"', Content_Length=str(1 << 40))
    client = connect(head)
    with pytest.raises(StorageError, match="ignored the byte range"):
        client.read(FILE, 100, 10)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind", "hint"),
    [
        ("404 Not Found", "NoSuchKey", StorageNotFoundError, ""),
        ("404 Not Found", "NoSuchBucket", StorageNotFoundError, "check the bucket's name"),
        ("403 Forbidden", "AccessDenied", StoragePermissionError, "s3:GetObject"),
        ("403 Forbidden", "InvalidAccessKeyId", StoragePermissionError, "AWS_ACCESS_KEY_ID"),
        ("403 Forbidden", "SignatureDoesNotMatch", StoragePermissionError, "AWS_ACCESS_KEY_ID"),
        ("403 Forbidden", "RequestTimeTooSkewed", StoragePermissionError, "clock"),
        ("403 Forbidden", "InvalidObjectState", StorageError, "no rule archive"),
        ("400 Bad Request", "ExpiredToken", StoragePermissionError, "renew"),
        ("401 Unauthorized", "Whatever", StoragePermissionError, "AWS_ACCESS_KEY_ID"),
        ("400 Bad Request", "InvalidArgument", StorageError, ""),
        ("400 Bad Request", "AuthorizationHeaderMalformed", StorageError, "region="),
        ("301 Moved Permanently", "PermanentRedirect", StorageError, "region="),
        ("501 Not Implemented", "NotImplemented", StorageError, ""),
        ("500 Internal Server Error", "InternalError", TransientStorageError, ""),
        ("502 Bad Gateway", "", TransientStorageError, "endpoint"),
        ("503 Service Unavailable", "SlowDown", TransientStorageError, ""),
        ("429 Too Many Requests", "TooManyRequests", TransientStorageError, ""),
        ("400 Bad Request", "RequestTimeout", StorageTimeoutError, ""),
        ("504 Gateway Timeout", "", StorageTimeoutError, "endpoint"),
    ],
)
def test_error_answers_become_the_right_class_once(
    connect, status: str, code: str, kind: type[StorageError], hint: str
):
    client = connect(s3_error(status, code) if code else answer(status, b"<html>sorry</html>"))
    calls: list[Callable[[], object]] = [
        lambda: client.read(FILE, 0, 10),
        lambda: client.write(0, 1, 1, b"x", 1),
        lambda: client.list_files(0),
    ]
    if code != "NoSuchKey":  # to a delete, which has nothing to do then
        calls.append(lambda: client.delete([FILE]))
    # A listing that is refused as such is tried once more as the first version of the request.
    has_other_way = code in ("InvalidArgument", "NotImplemented", "AuthorizationHeaderMalformed")
    for number, call in enumerate(calls, start=1):
        with pytest.raises(StorageError) as caught:
            call()
        assert type(caught.value) is kind
        assert (code or status[:3]) in str(caught.value)
        assert hint in (caught.value.hint or "")
        # A read that is refused is followed by a look whether the file is still there.
        expected = number + (code == "AccessDenied") + (has_other_way and number > 2)
        assert len(client.server.requests) == expected


@pytest.mark.parametrize(("header", "least", "most"), [("7", 7, 7), ("Fri, 31 Dec 2999 23:59:59 GMT", 1e9, 1e11)])
def test_retry_after_reaches_the_caller(connect, header: str, least: float, most: float):
    client = connect(s3_error("503 Slow Down", "SlowDown", Retry_After=header))
    for call in (lambda: client.read(FILE), lambda: client.list_files(0), lambda: client.write(0, 1, 1, b"x", 1)):
        with pytest.raises(TransientStorageError) as caught:
            call()
        assert caught.value.retry_after_s is not None
        assert least <= caught.value.retry_after_s <= most


@pytest.mark.parametrize("header", ["", "soon", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_retry_after_without_a_sense_is_no_pause(connect, header: str):
    client = connect(s3_error("503 Slow Down", "SlowDown", Retry_After=header))
    with pytest.raises(TransientStorageError) as caught:
        client.read(FILE)
    assert caught.value.retry_after_s in (None, 0.0)


def test_a_bucket_in_another_region_is_followed_there_once(connect):
    def script(method: str, target: str, headers: dict[str, str]) -> bytes:
        if "/eu-west-3/s3/" not in headers["authorization"]:
            return s3_error("301 Moved Permanently", "PermanentRedirect", x_amz_bucket_region="eu-west-3")
        return part(0, 9) if "list-type" not in target else listing(file_key(1))

    client = connect(script, "&region=us-west-2")
    assert [file.min_txid for file in client.list_files(0)] == [1]
    assert client.read(FILE, 0, 10) == b"x" * 10
    assert len(client.server.requests) == 3


def test_a_server_that_sends_us_from_region_to_region_is_an_error(connect):
    regions = iter(f"region-{number}" for number in range(100))
    client = connect(
        lambda *_: s3_error("301 Moved Permanently", "PermanentRedirect", x_amz_bucket_region=next(regions))
    )
    with pytest.raises(StorageError, match="say region=region-1 in the URL"):
        client.list_files(0)
    assert len(client.server.requests) == 2


def test_errors_of_single_files_in_a_delete_are_told(connect):
    body = (
        b"<DeleteResult><Error><Key>db/0000/a</Key><Code>NoSuchKey</Code></Error>"
        b"<Error><Key>db/0000/b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )
    client = connect(answer("200 OK", body))
    with pytest.raises(StoragePermissionError, match="db/0000/b"):
        client.delete([FILE, LTXFileInfo(0, 2, 2, 1000, 0)])
    assert "content-md5" in client.server.requests[0][2]


# --- listings ---------------------------------------------------------------------------------------------------------


@pytest.mark.plan("E01", "E02")
def test_a_listing_that_repeats_its_token_ends(connect):
    numbers = iter(range(1, 1000))
    client = connect(lambda *_: listing(file_key(next(numbers)), token="same"))
    with pytest.raises(StorageError, match="does not advance"):
        client.list_files(0)
    assert len(client.server.requests) == 2


@pytest.mark.plan("E01", "E02")
def test_a_listing_that_repeats_its_page_ends(connect):
    numbers = iter(range(1, 1000))
    client = connect(lambda *_: listing(file_key(1), file_key(2), token=f"token-{next(numbers)}"))
    with pytest.raises(StorageError, match="does not advance"):
        client.list_files(0)
    assert len(client.server.requests) == 2


@pytest.mark.plan("E01", "E02")
def test_a_listing_of_empty_pages_ends(connect):
    numbers = iter(range(1, 10_000))
    client = connect(lambda *_: listing(token=f"token-{next(numbers)}"))
    with pytest.raises(StorageError, match="does not advance"):
        client.list_files(0)
    assert len(client.server.requests) <= 200


def test_an_empty_page_in_a_listing_is_no_end(connect):
    pages = iter([listing(file_key(1), token="a"), listing(token="b"), listing(file_key(2))])
    client = connect(lambda *_: next(pages))
    assert [file.min_txid for file in client.list_files(0)] == [1, 2]
    assert "continuation-token=b" in client.server.requests[2][1]


@pytest.mark.plan("E01")
def test_a_server_that_ignores_where_to_start_is_filtered(connect):
    client = connect(listing(file_key(1), file_key(2), file_key(3), "other/0000/x", "db/0001/" + file_key(9)[8:]))
    assert [file.min_txid for file in client.list_files(0, 3)] == [3]
    assert client.list_files(0)[0].modified_ms == 1_767_323_045_678


@pytest.mark.plan("E05")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>log in</body></html>",
        b"<html>",
        b"{}",
        b"\x00\xff",
        b"<ListBucketResult><Contents/></ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    ],
)
def test_a_listing_that_is_none_names_the_endpoint(connect, body: bytes):
    client = connect(answer("200 OK", body))
    with pytest.raises(StorageError, match=r"no S3 listing.*proxy") as caught:
        client.list_files(0)
    assert client.server.endpoint in str(caught.value)
    assert type(caught.value) is StorageError


@pytest.mark.plan("K10")
def test_an_entity_bomb_in_a_listing_is_refused(connect):
    entities = '<!ENTITY a0 "bomb">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    body = f"<!DOCTYPE x [{entities}]><ListBucketResult><Name>&a11;</Name></ListBucketResult>".encode()
    client = connect(answer("200 OK", body))
    with pytest.raises(StorageError, match="no S3 listing"):
        client.list_files(0)


# --- files that must not be read --------------------------------------------------------------------------------------


def test_a_read_that_is_denied_of_a_file_that_is_listed_no_more_is_one_of_a_file_that_is_gone(connect):
    """S3 answers 403 instead of 404 where a policy lets list some prefixes only."""
    listed = [listing()]

    def script(method: str, target: str, headers: dict[str, str]) -> bytes:
        return listed[0] if "list-type" in target else s3_error("403 Forbidden", "AccessDenied")

    client = connect(script)
    with pytest.raises(StorageNotFoundError, match="gone") as caught:
        client.read(FILE, 0, 10)
    assert caught.value.min_txid == 1
    assert "prefix=db%2F0000%2F0000000000000001-0000000000000001.ltx" in client.server.requests[1][1]
    listed[0] = listing(file_key(1))
    with pytest.raises(StoragePermissionError, match="s3:GetObject"):
        client.read(FILE, 0, 10)
    listed[0] = s3_error("403 Forbidden", "AccessDenied")
    with pytest.raises(StoragePermissionError, match="s3:GetObject"):
        client.read(FILE, 0, 10)
    assert len(client.server.requests) == 6


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.plan("K09")
def test_secrets_appear_in_no_error_repr_or_record_of_ours(connect, credentials, caplog: pytest.LogCaptureFixture):
    """The server repeats all it got, which is the worst it can do."""
    caplog.set_level(logging.DEBUG, "litevfs")

    def script(method: str, target: str, headers: dict[str, str]) -> bytes:
        said = " ".join([credentials[1], *headers.values()])
        return s3_error("403 Forbidden", "AccessDenied", said.replace("<", ""))

    client = connect(script, f"&sseCustomerKey={SSE_KEY}")
    file = LTXFileInfo(0, 1, 1, 10, 0)
    texts = [repr(client), client.url, str(client._location), repr(client.server.requests[:0])]
    calls = (
        lambda: client.read(file),
        lambda: client.list_files(0),
        lambda: client.write(0, 1, 1, b"x", 1),
        lambda: client.delete([file]),
    )
    for call in calls:
        with pytest.raises(LitevfsError) as caught:
            call()
        texts += [str(caught.value), repr(caught.value), repr(vars(caught.value))]
    texts += [f"{record.getMessage()} {record.args}" for record in caplog.records if record.name.startswith("litevfs")]
    sent = client.server.requests[0][2]
    assert sent["x-amz-server-side-encryption-customer-key"] == SSE_KEY.replace("%3D", "=")
    assert sent["x-amz-security-token"] == credentials[2]
    for secret in (*credentials, SSE_KEY[:30], sent["x-amz-server-side-encryption-customer-key"]):
        assert not [text for text in texts if secret in text]


# --- uploads that take long -------------------------------------------------------------------------------------------


def slow_receiver(listener: socket.socket, piece: int, pause_s: float, total: list[int]) -> None:
    """Take an upload piece by piece, then answer."""
    sock, _ = listener.accept()
    with sock:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1 << 16)
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        received = len(head.partition(b"\r\n\r\n")[2])
        while received < length:
            received += len(sock.recv(min(piece, length - received), socket.MSG_WAITALL))
            threading.Event().wait(pause_s)
        total.append(received)
        sock.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')


def test_a_slow_line_has_the_time_limit_for_each_piece_of_an_upload():
    total: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        thread = threading.Thread(target=slow_receiver, args=(listener, 1 << 20, 0.1, total))
        thread.start()
        url = f"s3://bucket/db?endpoint=http://127.0.0.1:{listener.getsockname()[1]}"
        with closing(S3ReplicaClient(url, connect_timeout_s=0.7, read_timeout_s=10)) as client:
            client.write(0, 1, 1, bytes(20 << 20), 1)  # two seconds at least
        thread.join(10)
    assert total == [20 << 20]


def test_an_upload_that_is_answered_with_blanks_for_ever_ends(connect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "ANSWER_LIMIT_S", 0.5)
    client = connect(dripping(answer("200 OK", b" " * 10_000), 60), read_timeout_s=0.4)
    with pytest.raises(StorageTimeoutError):
        client.write(0, 1, 1, b"x", 1)

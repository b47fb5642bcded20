"""Answers of all shapes: the transport's short way reads of each what urllib3 reads of it."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import urllib3

from litevfs.errors import StorageTimeoutError, TransientStorageError
from litevfs.replica_clients.http.transport import Transport

BODY = b"0123456789" * 3
ANSWERS = {
    "usual": b'HTTP/1.1 200 OK\r\nContent-Length: 30\r\nETag:\t"a: b" \r\nX-Empty:\r\n\r\n' + BODY,
    "no reason": b"HTTP/1.1 206 \r\ncontent-length:30\r\n\r\n" + BODY,
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no headers": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified, with a length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 30\r\n\r\n",
    "an error": b"HTTP/1.1 503 Slow Down\r\nContent-Length: 30\r\nRetry-After: 1\r\n\r\n" + BODY,
    "closes": b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\nConnection: Close\r\n\r\n" + BODY,
    "without a length": b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\n" + BODY,
    "of 1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 30\r\n\r\n" + BODY,
    "of 1.0, kept": b"HTTP/1.0 200 OK\r\nContent-Length: 30\r\nConnection: keep-alive\r\n\r\n" + BODY,
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"A;x=y\r\n0123456789\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n",
    "interim first": b"HTTP/1.1 100 Continue\r\nX-A: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + BODY,
    "one name twice": b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 30\r\nx-a: 2\r\n\r\n" + BODY,
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 30\nX-A: 1\n\n" + BODY,
    "not ASCII": b"HTTP/1.1 200 D\xe9j\xe0\r\nContent-Length: 30\r\nX-A: \xdf\xff\r\n\r\n" + BODY,
    "a long head": b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n" + b"X-A: " + b"a" * 60_000 + b"\r\n\r\n" + BODY,
}
MALFORMED = {
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "breaks off in the head": b"HTTP/1.1 200 OK\r\nContent-Length: 3",
    "breaks off in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n012",
    "breaks off in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n012",
    "nothing": b"",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 20_000,
    "a line without end": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000,
}


class Server:
    """Answers each request with the same bytes, `size` at once; hangs up after those that show their end so."""

    def __init__(self, answer: bytes, size: int, *, hangs_up: bool) -> None:
        self._answer, self._size, self._hangs_up = answer, size, hangs_up
        self.connections = 0
        self.closed = threading.Semaphore(0)  # released once for each connection that its client has closed
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/path?a=b"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self.connections += 1
            with sock:
                while (request := sock.recv(1 << 16)).startswith(b"GET"):
                    assert request.endswith(b"\r\n\r\n")
                    for start in range(0, len(self._answer), self._size):
                        sock.sendall(self._answer[start : start + self._size])
                    if self._hangs_up:
                        break
                else:
                    self.closed.release()
                    if request:
                        return

    def close(self) -> None:
        with socket.create_connection(self._listener.getsockname()) as sock:
            sock.sendall(b"END")
            self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: bytes, size: int = 1 << 20, *, hangs_up: bool = False) -> Server:
        servers.append(Server(answer, size, hangs_up=hangs_up))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def get(transport: Transport, url: str, limit: int = 1 << 20) -> tuple[int, dict[str, str], bytes]:
    answer = transport.request("GET", "GET", url, {"X-Own": "1"})
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert all(answer.headers.get(name.upper()) == value for name, value in headers.items())
    return answer.status, headers, transport.read_body(answer, url, limit)


@pytest.mark.parametrize("size", [1 << 20, 7])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_any_shape_is_read_as_urllib3_reads_it(serve, name: str, size: int):
    answer = ANSWERS[name]
    if len(answer) > 1000:
        size *= 1000
    hangs_up = name in ("closes", "without a length", "of 1.0")
    ours, theirs = serve(answer, size, hangs_up=hangs_up), serve(answer, size, hangs_up=hangs_up)
    with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
        read = [get(transport, ours.url) for _ in range(2)]
    with urllib3.PoolManager() as pool:
        for status, headers, body in read:
            expected = pool.request("GET", theirs.url, retries=False)
            assert (status, body) == (expected.status, expected.data)
            assert headers == {name.lower(): value.strip() for name, value in expected.headers.itermerged()}
    assert ours.connections == theirs.connections == (2 if hangs_up else 1)


@pytest.mark.parametrize("size", [1 << 20, 7])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_body_in_pieces_is_the_same_as_at_once(serve, name: str, size: int):
    hangs_up = name in ("closes", "without a length", "of 1.0")
    server = serve(ANSWERS[name], size * (1000 if len(ANSWERS[name]) > 1000 else 1), hangs_up=hangs_up)
    with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
        for limit in (
            (1 << 20, 10, 1) if size > 7 else (1 << 20,)
        ):  # a server that sends on would see a broken connection
            expected = get(transport, server.url, limit)[2]
            answer = transport.request("GET", "GET", server.url, {})
            pieces: list[bytes] = []
            assert transport.read_pieces(pieces.append, answer, server.url, limit) == len(expected)
            assert b"".join(pieces) == expected
            assert all(pieces)


def test_a_piece_is_there_before_the_next_is_sent():
    taken = threading.Semaphore(0)
    body = [b"a" * 10, b"b" * 70_000, b"c" * 300_000]

    def send() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1 << 16)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % sum(map(len, body)))
            for piece in body:
                sock.sendall(piece)
                for _ in piece:
                    assert taken.acquire(timeout=10)

    pieces: list[bytes] = []

    def take(piece: bytes) -> None:
        pieces.append(piece)
        taken.release(len(piece))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
            answer = transport.request("GET", "GET", url, {})
            assert transport.read_pieces(take, answer, url, 1 << 20) == 370_010
        thread.join()
    assert b"".join(pieces) == b"".join(body)


@pytest.mark.parametrize("name", ["breaks off in the body", "breaks off in a chunk"])
def test_a_body_that_breaks_off_is_transient_after_the_pieces_that_came(serve, name: str):
    server = serve(MALFORMED[name], hangs_up=True)
    pieces: list[bytes] = []
    with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
        answer = transport.request("GET", "GET", server.url, {})
        with pytest.raises(TransientStorageError, match="broke"):
            transport.read_pieces(pieces.append, answer, server.url, 1 << 20)
    assert b"".join(pieces) in (b"012", b"")


def test_what_the_taker_of_pieces_raises_ends_the_connection(serve):
    server = serve(ANSWERS["usual"])

    def refuse(_: bytes) -> None:
        raise KeyError("not wanted")

    with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
        answer = transport.request("GET", "GET", server.url, {})
        with pytest.raises(KeyError):
            transport.read_pieces(refuse, answer, server.url, 1 << 20)
        assert server.closed.acquire(timeout=10)


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_is_none_is_transient(serve, name: str):
    server = serve(MALFORMED[name], hangs_up=True)
    transport = Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)
    with closing(transport), pytest.raises(TransientStorageError, match=r"connection to http://127.0.0.1:[0-9]+ broke"):
        get(transport, server.url)


def test_bytes_after_an_answer_are_no_part_of_the_next(serve):
    server = serve(ANSWERS["usual"] + ANSWERS["empty"])
    with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
        for _ in range(3):
            assert get(transport, server.url)[2] == BODY
    assert server.connections == 3


def test_a_body_that_is_not_read_to_its_end_ends_the_connection(serve):
    server = serve(ANSWERS["usual"])
    with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
        assert get(transport, server.url, limit=10)[2] == BODY[:10]
        assert server.closed.acquire(timeout=10)
        transport.request("GET", "GET", server.url, {})  # the answer is forsaken
        gc.collect()
        assert server.closed.acquire(timeout=10)
    assert server.connections == 2


def test_the_collector_may_end_an_answer_in_a_thread_that_has_the_lock_of_the_pool(serve):
    server = serve(ANSWERS["usual"])
    transport = Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)
    answers = [transport.request("GET", "GET", server.url, {})]
    pool, _ = transport._pool("http", server.url.split("/")[2])

    def collect() -> None:
        with pool.pool.mutex:  # as in the middle of taking a connection
            answers.clear()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()  # if it is, closing the transport would wait for it
    with closing(transport):
        assert server.closed.acquire(timeout=10)
        assert get(transport, server.url)[2] == BODY


def test_an_answer_that_drips_ends_by_the_time_limit_of_all_of_it():
    def drip() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1 << 16)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not sent_last.wait(0.02):
                sock.sendall(b"x")

    sent_last = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        try:
            with closing(Transport(connect_timeout_s=5, read_timeout_s=30, max_connections=4)) as transport:
                answer = transport.request("GET", "GET", url, {}, deadline=time.monotonic() + 0.3)
                with pytest.raises(StorageTimeoutError):
                    transport.read_body(answer, url, 1000)
        finally:
            sent_last.set()
            thread.join()


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb"])
def test_a_header_with_a_line_break_is_not_sent(value: str):
    transport = Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)
    with closing(transport), pytest.raises(ValueError, match="line break"):
        transport.request("GET", "GET", "http://127.0.0.1:9/", {"X-A": value})


def test_a_request_on_a_kept_connection_that_is_dropped_is_made_again_at_once():
    """Of three connections, the server lets go of each when it gets a second request on it."""
    answered: list[int] = []

    def run(listener: socket.socket) -> None:
        for connection in range(3):
            sock, _ = listener.accept()
            with sock:
                while sock.recv(1 << 16).startswith(b"GET") and answered[-1:] != [connection]:
                    sock.sendall(ANSWERS["usual"])
                    answered.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, args=(listener,), daemon=True)
        thread.start()
        with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=4)) as transport:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            assert [get(transport, url)[2] for _ in range(3)] == [BODY] * 3
        thread.join(10)
    assert answered == [0, 1, 2]


def test_when_all_kept_connections_are_dropped_at_once_each_request_gets_another_one():
    count = 8
    all_kept, dropped = threading.Barrier(count), threading.Event()

    def serve(sock: socket.socket, *, is_kept: bool) -> None:
        with sock:
            sock.recv(1 << 16)
            sock.sendall(ANSWERS["usual"])
            if is_kept:
                dropped.wait(10)

    def run(listener: socket.socket) -> None:
        for number in range(2 * count):
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), kwargs={"is_kept": number < count}, daemon=True).start()

    def ask(transport: Transport, url: str) -> tuple[bytes, bytes]:
        answer = transport.request("GET", "GET", url, {})
        all_kept.wait(10)  # no connection is free before each thread has one
        first = transport.read_body(answer, url, 100)
        all_kept.wait(10)
        dropped.set()
        return first, get(transport, url)[2]

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(count) as pool:
        server = threading.Thread(target=run, args=(listener,), daemon=True)
        server.start()
        with closing(Transport(connect_timeout_s=5, read_timeout_s=5, max_connections=count)) as transport:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            answers = [pool.submit(ask, transport, url) for _ in range(count)]
            assert [answer.result(30) for answer in answers] == [(BODY, BODY)] * count
        server.join(10)

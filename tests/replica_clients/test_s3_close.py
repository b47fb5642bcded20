"""Calls of an S3 client that is closed, connections that are never made, and a proxy of the environment."""

from __future__ import annotations

import base64
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from litevfs.errors import StorageClosedError, StorageError, StorageTimeoutError, TransientStorageError
from litevfs.replica_clients.s3.client import S3ReplicaClient
from tests.replica_clients.s3_answers import FILE, answer, part
from tests.support import wait_until

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("credentials")]


# --- close ------------------------------------------------------------------------------------------------------------


@pytest.mark.plan("L11")
@pytest.mark.parametrize("call", ["list", "read", "write"])
def test_close_ends_a_call_that_waits_for_an_answer(connect, call: str):
    client = connect(lambda *_: b"hang")
    calls = {
        "list": lambda: client.list_files(0),
        "read": lambda: client.read(FILE),
        "write": lambda: client.write(0, 1, 1, b"x", 1),
    }
    ends_when_closed(client, calls[call], client.server.hanging.is_set)


@pytest.mark.plan("L11")
def test_close_ends_a_call_that_waits_for_the_rest_of_a_body(connect):
    whole = part(0, 999)
    sent = threading.Event()

    def script(*_: object) -> bytes:
        sent.set()
        return whole[:-500]  # with the length of the whole: more is to come

    client = connect(script)
    ends_when_closed(client, lambda: client.read(FILE, 0, 1000), sent.is_set)


@pytest.mark.plan("L11")
def test_close_ends_a_call_that_connects_to_a_full_queue():
    with full_queue() as port:
        client = S3ReplicaClient(f"s3://bucket/db?endpoint=http://127.0.0.1:{port}", connect_timeout_s=60)
        ends_when_closed(client, lambda: client.list_files(0), lambda: client._transport.requests)


@pytest.mark.plan("L11")
def test_close_at_the_moment_at_which_a_connection_begins_ends_it(monkeypatch):
    """The socket is known and not yet connecting: there is nothing to shut down."""
    with full_queue() as port:
        client = S3ReplicaClient(f"s3://bucket/db?endpoint=http://127.0.0.1:{port}", connect_timeout_s=15)
        sockets = client._transport._sockets
        add, closed = sockets.add, threading.Event()

        def add_and_close(sock: socket.socket) -> socket.socket:
            handle = add(sock)
            client.close()
            closed.set()
            return handle

        monkeypatch.setattr(sockets, "add", add_and_close)
        ends_when_closed(client, lambda: client.list_files(0), closed.is_set)


@pytest.mark.slow
@pytest.mark.plan("L11")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the socket that is forsaken
def test_an_answer_may_be_collected_while_another_connection_is_made_or_ended(connect, monkeypatch):
    client = connect(lambda *_: part(0, 9))
    sockets = client._transport._sockets
    read = threading.Event()

    class Collecting(set):
        """The collector runs whenever a socket comes or goes."""

        def add(self, handle):
            gc.collect()
            super().add(handle)

        def discard(self, handle):
            gc.collect()
            super().discard(handle)

    def forsake_and_read() -> None:
        for _ in range(3):
            url = client.access.object_url(client.key(FILE))
            forsaken = [client._transport.request("GET", "GET", url, {"Range": "bytes=0-9"})]
            forsaken.append(forsaken)
            del forsaken
            assert client.read(FILE, 0, 10) == b"x" * 10
        read.set()

    monkeypatch.setattr(sockets, "_handles", Collecting())
    gc.disable()
    gc.freeze()  # what is there: to go through all of it each time takes longer than the rest
    try:
        threading.Thread(target=forsake_and_read, daemon=True).start()
        assert read.wait(10)
    finally:
        gc.unfreeze()
        gc.enable()


def test_close_ends_a_tls_handshake():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = S3ReplicaClient(f"s3://bucket/db?endpoint=https://127.0.0.1:{port}&skipVerify=1", connect_timeout_s=60)
        accepted: list[socket.socket] = []

        def hello_arrived() -> bool:
            if not accepted:
                accepted.append(listener.accept()[0])
            return bool(accepted[0].recv(5, socket.MSG_PEEK))

        ends_when_closed(client, lambda: client.list_files(0), hello_arrived)
        accepted[0].close()


@pytest.mark.plan("L11")
def test_a_connect_that_gets_no_answer_times_out():
    with full_queue() as port:
        client = S3ReplicaClient(f"s3://bucket/db?endpoint=http://127.0.0.1:{port}", connect_timeout_s=0.2)
        with pytest.raises(StorageTimeoutError):
            client.list_files(0)
        client.close()


def ends_when_closed(client: S3ReplicaClient, call: Callable[[], object], under_way: Callable[[], object]) -> None:
    """Run `call` in a thread, close the client once it is under way, and see the thread end with the right error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - judged below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(under_way)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [StorageClosedError]


@contextmanager
def full_queue() -> Iterator[int]:
    """The port of a listener with so many connections that the kernel answers no further one."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


# --- a proxy of the environment ---------------------------------------------------------------------------------------


@pytest.fixture
def through(monkeypatch):
    """Sets the proxy of the environment; gives a client of a server that only that could reach."""
    clients: list[S3ReplicaClient] = []
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")

    def through(proxy: str, scheme: str) -> S3ReplicaClient:
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        clients.append(S3ReplicaClient(f"s3://bucket/db?endpoint={scheme}://s3.invalid", read_timeout_s=5))
        return clients[-1]

    yield through
    for client in clients:
        client.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_gets_the_user_and_the_password_that_its_url_encodes(through, scripted_server, scheme: str):
    proxy = scripted_server(answer("407 Proxy Authentication Required"))
    client = through(proxy.endpoint.replace("://", "://us%40er:p%40ss%2Fw%C3%B6rd@"), scheme)
    for call in (lambda: client.read(FILE, 0, 10), lambda: client.write(0, 1, 1, b"x", 1)):
        with pytest.raises(StorageError, match="407") as caught:
            call()
        assert "proxy" in caught.value.hint
        assert "p%40ss" not in repr(caught.value) + repr(caught.value.__cause__)
    sent = {headers["proxy-authorization"] for _, _, headers in proxy.requests}
    assert [base64.b64decode(value.split()[1]).decode() for value in sent] == ["us@er:p@ss/wörd"]


@pytest.mark.parametrize("proxy", ["socks5://user:pass-word@127.0.0.1:1", "http://user:pass-word@127.0.0.1:port"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_used_is_said_so_and_not_tried_again(through, proxy: str, scheme: str):
    client = through(proxy, scheme)
    for call in (
        lambda: client.read(FILE, 0, 10),
        lambda: client.list_files(0),
        lambda: client.write(0, 1, 1, b"x", 1),
    ):
        with pytest.raises(StorageError, match="HTTPS_PROXY") as caught:
            call()
        assert not isinstance(caught.value, TransientStorageError)
        assert "pass-word" not in repr(caught.value) + repr(caught.value.__cause__)

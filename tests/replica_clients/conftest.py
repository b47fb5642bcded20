from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.conformance_base import ReplicaUnderTest
from tests.replica_clients.stores import STORES, Proxy, Store, address_of, running_store

AZURE_SETTINGS = (
    *("LITESTREAM_AZURE_SAS_TOKEN", "AZURE_STORAGE_SAS_TOKEN", "LITESTREAM_AZURE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"),
    *("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_AUTHORITY_HOST", "AZURE_TOKEN_CREDENTIALS"),
    *("AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "IMDS_ENDPOINT"),
)
"""Variables of the environment that say who asks Azure."""


@dataclass
class ScriptedServer:
    """An HTTP server that answers as a test says: `answer` gets method, target and headers, and returns raw bytes.

    None hangs up, `HANG` never answers, pieces are sent PACE_S seconds apart. The connection is closed after an answer
    that says so, or has no length, or came in pieces.
    """

    answer: Callable[[str, str, dict[str, str]], bytes | Iterable[bytes] | None]
    context: ssl.SSLContext | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    connections: int = 0
    hanging: threading.Event = field(default_factory=threading.Event)  # a request is waiting for ever

    HANG = b"hang"
    PACE_S = 0.02

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if self.context is None else "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()
        for sock in [self._listener, *self._sockets]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        if self.context is not None:
            try:
                sock = self.context.wrap_socket(sock, server_side=True)
            except OSError:
                return
            self._sockets.append(sock)
        with sock, sock.makefile("rb") as stream:
            try:
                while self._serve_one(sock, stream):
                    pass
            except OSError:
                pass

    def _serve_one(self, sock: socket.socket, stream) -> bool:
        line = stream.readline().decode()
        if not line:
            return False
        method, target, _ = line.split()
        headers = {}
        while (line := stream.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect") == "100-continue":
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        stream.read(int(headers.get("content-length", 0)))
        self.requests.append((method, target, headers))
        answer = self.answer(method, target, headers)
        if answer == self.HANG:
            self.hanging.set()
            self._closed.wait()
            return False
        if answer is None:
            return False
        if not isinstance(answer, bytes):
            for piece in answer:
                sock.sendall(piece)
                if self._closed.wait(self.PACE_S):
                    break
            return False
        sock.sendall(answer)
        return b"ontent-Length" in answer and b"Connection: close" not in answer


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts a `ScriptedServer` with the given answer, closed after the test."""
    servers: list[ScriptedServer] = []

    def start(
        answer: Callable[[str, str, dict[str, str]], bytes | None] | bytes, context: ssl.SSLContext | None = None
    ) -> ScriptedServer:
        servers.append(ScriptedServer(answer if callable(answer) else lambda *_: answer, context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connect(scripted_server):
    """Starts a server that gives an answer, and a client of it; both end with the test."""
    clients: list[S3ReplicaClient] = []

    def connect(script, query: str = "", **options) -> S3ReplicaClient:
        server = scripted_server(script)
        clients.append(S3ReplicaClient(f"s3://bucket/db?endpoint={server.endpoint}{query}", **options))
        clients[-1].server = server
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """An access key, a secret key and a session token in the environment, and nothing else that counts."""
    keys = ("AKIDTESTACCESSKEY", "the/secret+key", "the-session-token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    monkeypatch.setenv("AWS_SESSION_TOKEN", keys[2])
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in (
        "LITESTREAM_ACCESS_KEY_ID",
        "LITESTREAM_SECRET_ACCESS_KEY",
        "LITESTREAM_S3_ENDPOINT",
        "LITESTREAM_SESSION_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    return keys


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each storage with its server, for tests that are marked `servers`."""
    with running_store(request.param, tmp_path_factory.mktemp(request.param)) as store:
        yield store


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    """Before the server."""
    with store.behind_proxy() as proxy:
        yield proxy


@pytest.fixture
def replica(store: Store, proxy: Proxy) -> Iterator[ReplicaUnderTest]:
    """An empty one, behind the proxy."""
    replica = store.new_replica(address_of(proxy))
    yield replica
    if hasattr(replica, "http"):
        replica.http.clear()


@pytest.fixture
def client(replica: ReplicaUnderTest) -> Iterator[ReplicaClient]:
    client = replica.new_client()
    yield client
    client.close()

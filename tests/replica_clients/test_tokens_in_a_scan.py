"""A token of Google or Azure that the storage takes no longer from some request of a scan on: no error, no warning.

What gives out tokens gives the same one until it ends, as metadata services do.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.replica_clients.urls import open_replica_client
from tests.primary import Primary
from tests.replica_clients.conftest import AZURE_SETTINGS
from tests.replica_clients.test_gs import credentials_file
from tests.support import connected, in_threads, one

pytest.importorskip("azure.identity", reason="pip install litevfs[azure]")

ROWS = 1500
LIFETIME_S = 3600


def answer_of(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Cloud:
    """Files by their keys, behind tokens: that of `number` is the only one that the storage takes."""

    files: dict[str, bytes] = field(default_factory=dict)
    number: int = 1
    last_requests: int = 10**9  # of the first token
    requests: int = 0  # with a valid token
    refused: int = 0
    given: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def give(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        """The token of now, as either cloud's services write it."""
        with self.lock:
            token = f"token-{self.number}"
            self.given.append(token)
        body = {"access_token": token, "expires_in": LIFETIME_S, "token_type": "Bearer"}
        body["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        body |= {"expires_on": str(int(time.time()) + LIFETIME_S), "resource": "https://storage.azure.com/"}
        return answer_of(json.dumps(body).encode(), headers="Content-Type: application/json\r\n")

    def serve(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        with self.lock:
            if headers.get("authorization") != f"Bearer token-{self.number}":
                self.refused += 1
                return answer_of(b"{}", "401 Unauthorized")
            self.requests += 1
            if self.requests >= self.last_requests:
                self.number, self.last_requests = self.number + 1, 10**9
        path, query = unquote(urlsplit(target).path), parse_qs(urlsplit(target).query)
        if "prefix" in query:
            return answer_of(self.listing(query["prefix"][0], is_azure="comp" in query))
        data = next((data for key, data in self.files.items() if path.endswith(key)), None)
        if data is None:
            return answer_of(b"{}", "404 Not Found")
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if found is None:
            return answer_of(data, headers=VERSION)
        first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
        if first > last:
            return answer_of(b"", "416 Range Not Satisfiable")
        place = f"Content-Range: bytes {first}-{last}/{len(data)}\r\n"
        return answer_of(data[first : last + 1], "206 Partial Content", VERSION + place)

    def listing(self, prefix: str, *, is_azure: bool) -> bytes:
        sizes = {key: len(data) for key, data in sorted(self.files.items()) if key.startswith(prefix)}
        if not is_azure:
            created = {"generation": "1", "timeCreated": "2026-01-01T00:00:00Z"}
            return json.dumps(
                {"items": [{"name": key, "size": str(n), **created} for key, n in sizes.items()]}
            ).encode()
        blobs = [
            f"<Blob><Name>{key}</Name><Properties><Content-Length>{n}</Content-Length><Etag>1</Etag></Properties></Blob>"
            for key, n in sizes.items()
        ]
        return f"<R><Blobs>{''.join(blobs)}</Blobs><NextMarker/></R>".encode()


VERSION = 'ETag: "1"\r\nx-goog-generation: 1\r\n'


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    store = MemoryReplicaClient(MemoryStore("scanned"))
    with Primary(store) as primary:
        primary.commit("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        primary.commit(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})"
            " INSERT INTO t SELECT i, randomblob(2000) FROM n"
        )
    return {f"db/ltx/0/{file.name}": store.read(file) for file in store.list_files(0)}


@pytest.fixture
def cloud(files: dict[str, bytes]) -> Cloud:
    return Cloud(files)


@pytest.fixture(params=["gs", "abs"])
def url(
    request: pytest.FixtureRequest,
    cloud: Cloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripted_server: Callable[..., object],
) -> str:
    """The replica in `cloud`."""
    service, storage = scripted_server(cloud.give).endpoint, scripted_server(cloud.serve).endpoint
    if request.param == "gs":
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setattr("litevfs.replica_clients.gs._ENDPOINT", storage)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials_file(tmp_path, f"{service}/token")))
        return "gs://bucket/db"
    for name in AZURE_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", service)
    return f"abs://account@container/db?endpoint={storage}"


@pytest.mark.parametrize("last_requests", [1, 2, 4, 8])
def test_a_token_that_ends_in_the_middle_of_a_scan_is_no_error(
    url: str, cloud: Cloud, caplog: pytest.LogCaptureFixture, last_requests: int
):
    caplog.set_level(logging.WARNING, "litevfs")
    cloud.last_requests = last_requests
    with connected(url, poll_interval="0", cache_size="1MB") as connection:
        keys = [key for (key,) in connection.execute("SELECT a FROM t WHERE length(b) = 2000")]
        assert keys == list(range(1, ROWS + 1))
        assert one(connection, "SELECT count(*) FROM t WHERE b IS NOT NULL") == ROWS
    assert cloud.requests > 8
    assert cloud.refused > 0
    assert set(cloud.given) == {"token-1", "token-2"}
    assert not [record for record in caplog.records if record.name.startswith("litevfs")]


def test_reads_that_are_refused_at_once_share_the_next_token(url: str, cloud: Cloud):
    readers = 8
    with closing(open_replica_client(url)) as client:
        file = max(client.list_files(0), key=lambda file: file.size)
        content = cloud.files[f"db/ltx/0/{file.name}"]
        for _ in range(5):
            cloud.number += 1
            read = in_threads(readers, lambda number: client.read(file, number * 1000, 1000))
            assert read == [content[number * 1000 : (number + 1) * 1000] for number in range(readers)]

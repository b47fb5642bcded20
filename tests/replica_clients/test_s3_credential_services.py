"""Each service of AWS that gives out temporary credentials, and what happens when they end in the middle of work."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from botocore.credentials import SSOProvider

from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.odd_s3_server import BUCKET, OddS3Server, running_odd_s3_server
from litevfs.testing.s3_oddities import Oddity
from tests.primary import Primary
from tests.replica_clients.credential_services import SERVICES, Giver
from tests.support import connected, one

pytestmark = pytest.mark.s3


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OddS3Server]:
    """A server whose keys only a service gives out; nothing of this machine's own settings counts."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "LITESTREAM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(SSOProvider, "_SSO_TOKEN_CACHE_DIR", str(tmp_path / ".aws" / "sso" / "cache"))
    with running_odd_s3_server(Oddity(name="", seen="")) as server:
        server.keys.clear()
        yield server


def use(server: OddS3Server, giver: Giver) -> None:
    """Let the server take what `giver` gives now, and nothing that it gave before."""
    server.expired |= set(server.keys)
    server.keys = {giver.key: (giver.secret, giver.token)}


def url(server: OddS3Server) -> str:
    return f"s3://{BUCKET}/db?endpoint={server.endpoint}"


@pytest.fixture
def give(
    server: OddS3Server, scripted_server: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Giver]:
    """Starts a service, and makes it the only one that there are credentials from."""

    def give(kind: str) -> Giver:
        service, settings = SERVICES[kind]
        giver = Giver()
        endpoint = scripted_server(service(giver)).endpoint
        for name, value in settings(tmp_path, endpoint).items():
            monkeypatch.setenv(name, value)
        use(server, giver)
        return giver

    return give


@pytest.mark.parametrize("kind", sorted(SERVICES))
def test_credentials_come_from_the_service_and_are_renewed(
    server: OddS3Server, give: Callable[[str], Giver], kind: str
):
    giver = give(kind)
    with closing(S3ReplicaClient(url(server), read_timeout_s=10)) as client:
        first = client.write(0, 1, 1, b"content", 1)
        assert client.read(first) == b"content"
        assert [file.min_txid for file in client.list_files(0)] == [1]
        calls = len(giver.calls)
        assert calls
        for number, call in enumerate(
            [
                lambda: client.read(first),
                lambda: client.list_files(0),
                lambda: client.write(0, 2, 2, b"more", 1, exclusive=True),
                lambda: client.delete([first]),
            ],
            start=2,
        ):
            giver.rotate()
            use(server, giver)
            assert giver.number == number
            call()
        assert len(giver.calls) > calls
    assert set(server.objects) == {"db/0000/0000000000000002-0000000000000002.ltx"}


def test_credentials_that_end_in_the_middle_of_a_scan_are_no_error(
    server: OddS3Server, give: Callable[[str], Giver], caplog: pytest.LogCaptureFixture
):
    giver = give("web identity")
    caplog.set_level(logging.WARNING, "litevfs")
    store = MemoryReplicaClient(MemoryStore("scanned"))
    with Primary(store) as primary:
        primary.commit("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        primary.commit(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)"
            " INSERT INTO t SELECT i, randomblob(2000) FROM n"
        )
    for file in store.list_files(0):
        server.put(f"db/0000/{file.name}", store.read(file))
    with connected(url(server), poll_interval="0", cache_size="1MB") as connection:
        seen = 0
        for (key,) in connection.execute("SELECT a FROM t WHERE length(b) = 2000"):
            seen += 1
            assert key == seen
            if seen % 300 == 0:
                giver.rotate()
                use(server, giver)
        assert seen == 1500
        assert one(connection, "SELECT count(*) FROM t WHERE b IS NOT NULL") == 1500
    signed_with = {
        headers["authorization"].partition("Credential=")[2].partition("/")[0] for *_, headers in server.requests
    }
    assert len(signed_with) > 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("names", "token"),
    [
        ({"LITESTREAM_SESSION_TOKEN": "of-litestream", "AWS_SESSION_TOKEN": "of-aws"}, "of-litestream"),
        ({"AWS_SESSION_TOKEN": "of-aws"}, "of-aws"),
        ({}, None),
    ],
)
def test_temporary_keys_in_litestreams_variables_come_with_their_token(
    server: OddS3Server, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], token: str | None
):
    monkeypatch.setenv("LITESTREAM_ACCESS_KEY_ID", "LITESTREAMKEY")
    monkeypatch.setenv("LITESTREAM_SECRET_ACCESS_KEY", "a-secret")
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    server.keys = {"LITESTREAMKEY": ("a-secret", token)}
    with closing(S3ReplicaClient(url(server))) as client:
        assert client.list_files(0) == []


def test_a_clock_that_is_off_is_corrected_once_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ODDACCESSKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an/odd+secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "an-odd-token")
    caplog.set_level(logging.INFO, "litevfs")
    with (
        running_odd_s3_server(Oddity(name="", seen="", clock_s=7200)) as server,
        closing(S3ReplicaClient(url(server))) as client,
    ):
        for _ in range(3):
            assert client.list_from(0) == ([], True)
        assert len(server.requests) == 4
        assert any("clock" in text for text in client.workarounds)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "by 7200 s" in record.getMessage() or "by 7199 s" in record.getMessage()

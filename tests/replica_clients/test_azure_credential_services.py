"""Credentials of Azure's own library, from small servers of each protocol that gives them out."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from litevfs.errors import StorageError, StoragePermissionError
from litevfs.replica_clients.azure import AzureReplicaClient
from litevfs.testing.conformance_base import file_name
from tests.replica_clients.conftest import AZURE_SETTINGS, ScriptedServer
from tests.replica_clients.test_s3 import make_certificate

pytest.importorskip("azure.identity", reason="pip install litevfs[azure]")

LIFETIME_S = 3600
NAME = file_name(1, 1)


@dataclass
class Giver:
    """Gives out one token after the other."""

    number: int = 0
    refused: bool = False
    calls: list[str] = field(default_factory=list)

    @property
    def token(self) -> str:
        return f"the-token-{self.number}"

    def answer(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        self.calls.append(f"{method} {urlsplit(target).path}")
        if target.endswith("openid-configuration"):
            root = f"https://{headers['host']}/adfs"
            urls = {f"{name}_endpoint": f"{root}/{name}" for name in ("authorization", "token")}
            return http_answer({**urls, "issuer": root})
        if self.refused:
            return http_answer({"error": "invalid_client", "error_description": "no such client"}, "401 Unauthorized")
        self.number += 1
        until = int(time.time()) + LIFETIME_S
        fields = {"access_token": self.token, "expires_in": LIFETIME_S, "expires_on": str(until)}
        return http_answer({**fields, "token_type": "Bearer", "resource": "https://storage.azure.com/"})


def http_answer(body: object, status: str = "200 OK") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def instance(folder: Path, endpoint: str) -> dict[str, str]:
    return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": endpoint}


def app_service(folder: Path, endpoint: str) -> dict[str, str]:
    return {"IDENTITY_ENDPOINT": f"{endpoint}/msi/token", "IDENTITY_HEADER": "AKIDSECRET"}


def workload_identity(folder: Path, endpoint: str) -> dict[str, str]:
    (folder / "subject").write_text("AKIDSECRET")
    own = {"AZURE_CLIENT_ID": "a-client", "AZURE_TENANT_ID": "a-tenant"}
    return own | {"AZURE_FEDERATED_TOKEN_FILE": str(folder / "subject"), "AZURE_AUTHORITY_HOST": endpoint}


def client_secret(folder: Path, endpoint: str) -> dict[str, str]:
    """Of Active Directory Federation Services: for any other authority the library asks Microsoft's first."""
    own = {"AZURE_CLIENT_ID": "a-client", "AZURE_CLIENT_SECRET": "AKIDSECRET"}
    return own | {"AZURE_TENANT_ID": "adfs", "AZURE_AUTHORITY_HOST": endpoint}


SERVICES: dict[str, tuple[bool, Callable[[Path, str], dict[str, str]]]] = {
    "instance metadata": (False, instance),
    "app service": (False, app_service),
    "workload identity": (True, workload_identity),
    "client secret": (True, client_secret),
}
"""Whether the service has to speak TLS, and the settings that lead to it."""


@pytest.fixture
def giver() -> Giver:
    return Giver()


@pytest.fixture(params=SERVICES)
def url(
    request: pytest.FixtureRequest, giver: Giver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted_server
) -> str:
    """A replica with one file, in a storage that takes the newest token only."""
    is_tls, settings = SERVICES[request.param]
    context = None
    if is_tls:
        make_certificate(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "public.crt", tmp_path / "private.key")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "public.crt"))
    for name in AZURE_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    service: ScriptedServer = scripted_server(giver.answer, context)
    for name, value in settings(tmp_path, service.endpoint).items():
        monkeypatch.setenv(name, value)

    def storage(method: str, target: str, headers: dict[str, str]) -> bytes:
        if headers.get("authorization") != f"Bearer {giver.token}":
            return http_answer(b"<Error><Code>InvalidAuthenticationInfo</Code></Error>", "401 Unauthorized")
        if "comp" in parse_qs(urlsplit(target).query):
            properties = "<Properties><Content-Length>7</Content-Length><Etag>e</Etag></Properties>"
            blob = f"<Blob><Name>db/ltx/0/{NAME}</Name>{properties}</Blob>"
            return http_answer(f"<R><Blobs>{blob}</Blobs><NextMarker/></R>".encode())
        return http_answer(b"content")

    return f"abs://account@container/db?endpoint={scripted_server(storage).endpoint}"


def test_a_token_comes_from_the_service_and_is_renewed_where_it_is_refused(url: str, giver: Giver):
    client = AzureReplicaClient(url)
    (file,) = client.list_files(0)
    for _ in range(3):
        giver.number += 1000  # the storage knows no older token any more
        assert client.read(file) == b"content"
    client.close()
    assert len(giver.calls) >= 4


def test_a_refusal_says_where_credentials_come_from_and_shows_none(url: str, giver: Giver):
    giver.refused = True
    client = AzureReplicaClient(url)
    with pytest.raises(StorageError) as caught:
        client.list_files(0)
    client.close()
    assert isinstance(caught.value, StoragePermissionError)
    assert "Storage Blob Data Reader" in str(caught.value)
    assert "AKIDSECRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["client secret"], indirect=True)
def test_settings_are_read_again_where_there_were_no_credentials(url: str, monkeypatch: pytest.MonkeyPatch):
    """The library reads them when its credential is made: what is set or replaced later would never be seen."""
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # no other part of the chain is asked
    monkeypatch.delenv("AZURE_CLIENT_SECRET")
    client = AzureReplicaClient(url)
    with pytest.raises(StoragePermissionError):
        client.list_files(0)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "AKIDSECRET")
    assert len(client.list_files(0)) == 1
    client.close()

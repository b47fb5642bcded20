"""Credentials of S3 that change or expire, and the services that give them out."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.credentials import RefreshableCredentials

from litevfs.errors import StorageError, StoragePermissionError, StorageTimeoutError, TransientStorageError
from litevfs.replica_clients.s3 import access
from litevfs.replica_clients.s3.errors import STALE_CREDENTIALS
from tests.replica_clients.s3_answers import FILE, answer, file_key, listing, part, s3_error
from tests.support import wait_until

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("credentials")]


# --- credentials that change ------------------------------------------------------------------------------------------


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch, credentials: object, tmp_path: Path) -> Callable[[str], None]:
    """Writes an access key into the file that an operator's tool renews."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def write(key: str) -> None:
        path.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=the-secret-of-{key}\n")

    return write


@pytest.mark.parametrize("code", sorted(STALE_CREDENTIALS))
def test_renewed_credentials_are_read_and_the_request_is_sent_again(connect, profile: Callable[[str], None], code: str):
    def script(method: str, target: str, headers: dict[str, str]) -> bytes:
        if "Credential=NEWKEY/" not in headers["authorization"]:
            return s3_error("403 Forbidden", code)
        if method == "PUT":
            return answer("200 OK", ETag='"e"')
        return listing(file_key(1)) if "list-type" in target else part(0, 9)

    profile("OLDKEY")
    client = connect(script)
    calls: list[Callable[[], object]] = [lambda: client.list_files(0), lambda: client.read(FILE, 0, 10)]
    for call in calls:
        profile("OLDKEY")
        client.access._forget()
        client.server.requests.clear()
        with pytest.raises(StoragePermissionError, match=code):
            call()
        assert len(client.server.requests) == 1  # the same credentials once more: no use to send them
        profile("NEWKEY")
        assert call()
        assert len(client.server.requests) == 3
    profile("OLDKEY")
    client.access._forget()
    with pytest.raises(StoragePermissionError, match=code):
        client.write(0, 1, 1, b"x", 1)
    profile("NEWKEY")
    assert client.write(0, 1, 1, b"x", 1)  # an upload is not repeated by itself, but the next one has what is new


def test_credentials_that_never_become_valid_are_not_asked_for_in_a_loop(connect, profile: Callable[[str], None]):
    keys = iter(f"KEY{number}" for number in range(100))

    def script(*_: object) -> bytes:
        profile(next(keys))
        return s3_error("403 Forbidden", "ExpiredToken")

    profile("KEY")
    client = connect(script)
    with pytest.raises(StoragePermissionError, match="ExpiredToken"):
        client.list_files(0)
    assert len(client.server.requests) == 2


@pytest.fixture
def web_identity(monkeypatch: pytest.MonkeyPatch, profile: object, tmp_path: Path) -> Callable[[str], None]:
    """Credentials come from the token service at the given endpoint, as in a Kubernetes pod."""
    token = tmp_path / "token"
    token.write_text("a-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return lambda endpoint: monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)


def test_a_token_service_that_does_not_answer_may_do_so_later(connect, web_identity, scripted_server):
    silent = scripted_server(lambda *_: None)
    busy = scripted_server(
        answer("400 Bad Request", b"<ErrorResponse><Error><Code>IDPCommunicationError</Code></Error></ErrorResponse>")
    )
    for endpoint in (f"http://127.0.0.1:{closed_port()}", silent.endpoint, busy.endpoint):
        web_identity(endpoint)
        client = connect(listing())
        for call in (lambda c=client: c.list_files(0), lambda c=client: c.write(0, 1, 1, b"x", 1)):
            with pytest.raises(TransientStorageError, match="the service that gives out credentials"):
                call()
        assert client.server.requests == []


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def sts_answer(seconds: int) -> bytes:
    """Credentials of the token service that are good for so long."""
    expiration = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    given = "<AccessKeyId>ASIAKEY</AccessKeyId><SecretAccessKey>sts-secret</SecretAccessKey>"
    given += f"<SessionToken>sts-token</SessionToken><Expiration>{expiration}</Expiration>"
    result = f"<AssumeRoleWithWebIdentityResult><Credentials>{given}</Credentials></AssumeRoleWithWebIdentityResult>"
    body = f"<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResponse>"
    return answer("200 OK", body.encode())


def test_a_token_service_that_hangs_keeps_no_read_for_longer_than_its_time_limit(
    connect, web_identity, scripted_server, monkeypatch
):
    calls, go_on = [], threading.Event()

    def give_out(*_: object) -> bytes:
        calls.append(1)
        assert len(calls) == 1 or go_on.wait(30)
        return sts_answer(800 if len(calls) == 1 else 36_000)  # 800 s: good, but it is time to look for others

    web_identity(scripted_server(give_out).endpoint)
    client = connect(lambda *_: part(0, 9))
    assert client.read(FILE, 0, 10, timeout_s=30) == b"x" * 10
    assert client.read(FILE, 0, 10, timeout_s=30) == b"x" * 10
    # As if they were about to expire.
    monkeypatch.setattr(RefreshableCredentials, "_mandatory_refresh_timeout", 3600)
    monkeypatch.setattr(access, "MANDATORY_S", 3600)
    wait_until(lambda: len(calls) == 2, "the second call of the service")
    for _ in range(3):
        with pytest.raises(StorageTimeoutError):
            client.read(FILE, 0, 10, timeout_s=0.1)
    assert len(client.server.requests) == len(calls) == 2
    go_on.set()
    assert client.read(FILE, 0, 10, timeout_s=30) == b"x" * 10


def test_credentials_that_are_given_out_too_late_are_an_error_of_ours(connect, web_identity, scripted_server):
    web_identity(scripted_server(sts_answer(-60)).endpoint)
    client = connect(part(0, 9))
    for call in (
        lambda: client.read(FILE, 0, 10, timeout_s=30),
        lambda: client.read(FILE, 0, 10),
        lambda: client.write(0, 1, 1, b"x", 1),
    ):
        with pytest.raises(StoragePermissionError, match="still expired"):
            call()


def test_an_error_is_told_without_secrets_although_credentials_cannot_be_renewed(
    connect, web_identity, scripted_server
):
    soon = sts_answer(300)  # so soon that each use renews them
    given_out = iter([soon])
    web_identity(scripted_server(lambda *_: next(given_out, None)).endpoint)
    client = connect(s3_error("400 Bad Request", "InvalidRequest", "you sent sts-token and sts-secret"))
    with pytest.raises(StorageError, match="InvalidRequest") as caught:
        client.list_files(0)
    assert "sts-" not in str(caught.value)
    with pytest.raises(TransientStorageError, match="the service that gives out credentials"):
        client.list_files(0)

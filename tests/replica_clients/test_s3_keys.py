"""Keys from the environment: found without a session of botocore's, and the same that botocore would find."""

from __future__ import annotations

import botocore.session
import pytest

from litevfs.errors import StoragePermissionError
from litevfs.replica_clients.s3.client import S3ReplicaClient

URL = "s3://bucket/path?endpoint=http://127.0.0.1:1&region=eu-north-1"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
VARIABLES = (*KEYS, "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in (*VARIABLES, "LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def found() -> tuple[str, str, str | None]:
    client = S3ReplicaClient(URL)
    try:
        credentials = client.access.credentials()
    finally:
        client.close()
    assert credentials is not None
    return credentials.access_key, credentials.secret_key, credentials.token


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"AWS_SESSION_TOKEN": "token"},
        {"AWS_SECURITY_TOKEN": "old"},
        {"AWS_SECURITY_TOKEN": "old", "AWS_SESSION_TOKEN": "token"},
    ],
    ids=["no token", "token", "old token", "both"],
)
def test_keys_from_the_environment_need_no_session_and_are_those_that_botocore_finds(environment, more):
    for name, value in (KEYS | more).items():
        environment.setenv(name, value)
    wanted = botocore.session.Session().get_credentials().get_frozen_credentials()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a session is made")

    environment.setattr(botocore.session, "Session", refuse)
    assert found() == (wanted.access_key, wanted.secret_key, wanted.token)


def test_half_a_pair_of_keys_is_refused_as_botocore_refuses_it(environment):
    environment.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(StoragePermissionError, match="no credentials"):
        found()


def test_keys_that_expire_are_left_to_botocore(environment):
    for name, value in KEYS.items():
        environment.setenv(name, value)
    environment.setenv("AWS_CREDENTIAL_EXPIRATION", "2000-01-01T00:00:00Z")
    with pytest.raises(StoragePermissionError):
        found()

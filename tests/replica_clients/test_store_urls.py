"""URLs of storages beside S3, files and memory: one spelling, hints for bad ones, where files lie. No server runs."""

from __future__ import annotations

import sys

import pytest

from litevfs.errors import OptionError, ReplicaURLError
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.urls import canonical_url, open_replica_client
from litevfs.testing.conformance_base import TIMESTAMP_MS, file_name
from tests.replica_clients.conftest import AZURE_SETTINGS

PACKAGES = {"nats": "nats", "sftp": "paramiko"}
"""What clients of these schemes are not made without."""


@pytest.fixture(autouse=True)
def _environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be asked for credentials; a test of a URL is skipped without the package that it needs."""
    for name in (*AZURE_SETTINGS, "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LITESTREAM_AZURE_ACCOUNT_KEY", "c2VjcmV0")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    if "url" in request.fixturenames:
        scheme = request.getfixturevalue("url").partition(":")[0].lower()
        pytest.importorskip(PACKAGES.get(scheme, "sys"), reason=f"pip install litevfs[{scheme}]")


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("abs://account@container/a//b/../c/", "abs://account@container/a/c"),
        ("az://account@container/a", "abs://account@container/a"),
        ("AZ://account@container", "abs://account@container"),
        ("abs://a@container/a?endpoint=http://h:1/account", "abs://a@container/a?endpoint=http://h:1/account"),
        ("GS://bucket/a//b/../c/", "gs://bucket/a/c"),
        ("gs://bucket", "gs://bucket"),
        ("gs://bucket/a b", "gs://bucket/a%20b"),
        ("NATS://user@HOST:4222/bucket/", "nats://user@host/bucket"),
        ("nats://host:1/bucket/a/b?tls=true", "nats://host:1/bucket/a/b?tls=true"),
        ("SFTP://user@HOST:22/a//b/../c/", "sftp://user@host/a/c"),
        ("sftp://user@host:2222", "sftp://user@host:2222"),
        ("sftp://us%40er@[::1]/a?keyPath=/k", "sftp://us%40er@[::1]/a?keyPath=/k"),
        ("WEBDAV://user@HOST:80/a//b/../c/", "webdav://user@host/a/c"),
        ("webdavs://host:443", "webdavs://host"),
        ("webdavs://host:80/a", "webdavs://host:80/a"),
    ],
)
def test_urls_that_mean_the_same_are_spelled_the_same(url: str, canonical: str):
    assert canonical_url(url) == canonical == canonical_url(canonical)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("abs://container/db", r"without an account.*AZURE_STORAGE_ACCOUNT"),
        ("abs://account@/db", "names no place"),
        ("abs://account:AKIDSECRET@container/db", "a password"),
        ("abs://account@container/db?endpoint=ftp://x", "endpoint of an abs URL is none"),
        ("abs://account@container/db?endpoint=https://a:AKIDSECRET@x", "endpoint of an abs URL is none"),
        ("abs://account@container/db?endpiont=x", "did you mean endpoint"),
        ("nats://host", "without a bucket"),
        ("nats:///bucket", "names no place"),
        ("nats://user:AKIDSECRET@host/bucket", r"a password.*LITEVFS_NATS_PASSWORD"),
        ("nats://host/bucket?cred=x", "did you mean creds"),
        ("nats://host/bucket?tls=1", "neither true nor false"),
        ("sftp://host/db", "without a user"),
        ("sftp://user@/db", "names no place"),
        ("sftp://user:AKIDSECRET@host/db", r"a password.*LITEVFS_SFTP_PASSWORD"),
        ("sftp://user@host/db?keypath=x", "did you mean keyPath"),
        ("sftp://user@host/db?absolute=1", "neither true nor false"),
        ("webdav:///db", "names no place"),
        ("webdavs://user:AKIDSECRET@host/db", r"a password.*LITEVFS_WEBDAV_PASSWORD"),
        ("webdav://host/db?x=1", "unknown parameter 'x'"),
    ],
)
def test_bad_urls_are_refused_with_a_hint(url: str, message: str):
    with pytest.raises(ReplicaURLError, match=message) as caught:
        open_replica_client(url)
    assert "AKIDSECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("abs://account@container/a/b", "a/b/ltx/9"),
        ("gs://bucket/a/b", "a/b/ltx/9"),
        ("nats://host/bucket", "ltx/9"),
        ("sftp://u@h/a//b/", "a/b/ltx/9"),  # relative to the folder of the login
        ("sftp://u@h/a/b?absolute=true", "/a/b/ltx/9"),
        ("webdav://host/a/b", "a/b/ltx/9"),
    ],
)
def test_a_file_lies_where_litestream_puts_it(url: str, folder: str):
    client = open_replica_client(url)
    assert client.key(LTXFileInfo(9, 1, 255, 1, TIMESTAMP_MS)) == f"{folder}/{file_name(1, 255)}"
    client.close()


@pytest.mark.parametrize(
    ("place", "package", "message"),
    [
        ("abs://account@container/db", "azure.identity", r"\[azure\].*LITESTREAM_AZURE_ACCOUNT_KEY"),
        ("gs://bucket/db", "google.auth", r"\[gs\]"),
        ("nats://host/bucket", "nats", r"\[nats\]"),
        ("sftp://user@host/db", "paramiko", r"\[sftp\]"),
    ],
)
def test_without_its_package_the_error_names_the_extra(
    place: str, package: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("LITESTREAM_AZURE_ACCOUNT_KEY")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=f"pip install litevfs{message}"):
        open_replica_client(place)

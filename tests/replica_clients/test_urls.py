from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

from litevfs.errors import OptionError, ReplicaURLError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.replica_clients.s3.url import parse_s3_url
from litevfs.replica_clients.urls import absolute_url, canonical_url, open_replica_client, register_scheme

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE%3D"  # base64 of 32 digits
OTHER_KEY = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY%3D"


@pytest.fixture(autouse=True)
def _no_endpoint_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LITESTREAM_S3_ENDPOINT", raising=False)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///var/lib/replica", "/var/lib/replica"),
        ("file://localhost/var/lib/replica", "/var/lib/replica"),
        ("file:/var/lib/replica", "/var/lib/replica"),
        ("FILE:///a", "/a"),
        ("file:///a%20b/%C3%BC%3F%23", "/a b/ü?#"),
        ("/var/lib/with%20percent?and#", "/var/lib/with%20percent?and#"),
        ("/a/b/../c/", "/a/c"),
    ],
)
def test_file_urls_and_paths(url: str, path: str):
    client = open_replica_client(url)
    assert isinstance(client, FileReplicaClient)
    assert client.root == Path(path)
    assert canonical_url(client.url) == client.url == canonical_url(url)


def test_relative_paths_are_relative_to_where_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path in ("replica", "./replica"):
        assert canonical_url(path) == canonical_url(f"file://{tmp_path}/replica")


def test_an_absolute_url_means_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a b%20").mkdir()
    monkeypatch.chdir(tmp_path / "a b%20")
    absolute = [absolute_url(path) for path in ("replica", "./x/../replica", "file:replica")]
    monkeypatch.chdir("/")
    for url in absolute:
        client = open_replica_client(url)
        assert isinstance(client, FileReplicaClient)
        assert client.root == tmp_path / "a b%20" / "replica"
        assert absolute_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a path/ü?region=eu-west-1",
        "s3://bucket",
        "S3://bucket/path?endpoint=",
        f"s3://bucket/path?sseCustomerKey={KEY}&endpoint=",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/path",
        "s3://bucket/path?Endpoint=http://own:1",
    ],
)
def test_an_absolute_url_means_the_same_in_every_environment(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITESTREAM_S3_ENDPOINT", "http://127.0.0.1:9000/a")
    expected = parse_s3_url(url, "http://127.0.0.1:9000/a")
    absolute = absolute_url(url)
    for later in ("http://elsewhere:1", ""):
        monkeypatch.setenv("LITESTREAM_S3_ENDPOINT", later)
        assert parse_s3_url(absolute, later) == expected
        assert absolute_url(absolute) == absolute


def test_a_url_that_depends_on_nothing_is_absolute():
    for url in ("s3://bucket/path", "memory://name", "unknown://x", f"s3://bucket/path?sseCustomerKey={KEY}"):
        assert absolute_url(url) == url


def skip_without_its_package(place: str) -> None:
    if place.startswith("gs:"):
        pytest.importorskip("google.auth", reason="pip install litevfs[gs]")


@pytest.mark.parametrize("path", ["/a/b", "/a/b/", "//a///b//", "/a/./b", "/a/x/../b", "/%61%2Fb", "/../a/b"])
@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name",
        "s3://bucket.sgp1.digitaloceanspaces.com",
        "oss://bucket",
        "gs://bucket",
        "http://host",
        "webdav://host",
        "webdavs://host",
    ],
)
def test_spellings_of_a_path_mean_one_replica_as_for_litestream(place: str, path: str):
    skip_without_its_package(place)
    assert canonical_url(place + path) == canonical_url(f"{place}/a/b")


@pytest.mark.parametrize(
    "name", [" a ", "50%", "%41", "a#b?c", "a+b&c=d;e", "é日😀", "..a..", "a\\b", "x" * 300, "\n", "0"]
)
@pytest.mark.parametrize(
    "place", ["s3://bucket", "gs://bucket", "oss://bucket", "http://host", "webdav://host", "file://"]
)
def test_any_name_survives_being_written_into_a_url(place: str, name: str):
    skip_without_its_package(place)
    url = canonical_url(f"{place}/apps/{quote(name, safe='')}")
    assert unquote(urlsplit(url).path) == f"/apps/{name}"
    assert canonical_url(url) == url


def test_memory_urls_share_a_store_by_name():
    client = open_replica_client("memory://a%20name")
    try:
        assert isinstance(client, MemoryReplicaClient)
        assert client.store is memory_store("a name")
        assert canonical_url("memory://a name") == client.url == "memory://a%20name"
    finally:
        drop_memory_store("a name")


@pytest.mark.plan("K01")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://", "without a path"),
        ("file://host/path", r"host.*three slashes"),
        ("file:///a?b=c", r"no parameters.*%3F"),
        ("memory://", "without a name"),
        ("memory://x?y=1", "no parameters"),
        ("s4://bucket/db", r"unknown scheme 's4'.*did you mean s3://"),
        ("zzzz://host/db", r"unknown scheme 'zzzz'.*supported are .*file.*memory.*s3"),
        ("http://", "names no place"),
        ("http://host:port/db", "a port that is none"),
        ("https://host/db?key=1", "unknown parameter 'key'"),
        ("https://host/db?POLL-INTERVAL=1s", "poll_interval is an option"),
        ("sftp://host/db?KEYPATH=x", "did you mean keyPath"),
        ("https://host/db?poll_interval=1s", "poll_interval is an option, .*poll_interval=.* or --poll-interval"),
        ("s3://bucket/db?cache_size=1MB", "cache_size is an option"),
        ("file:///srv/db?cache_size=1MB", "cache_size is an option"),
        ("https://host/db#x", r"no fragment.*%23"),
        ("gs://", "names no place"),
        ("gs://bucket/db?project=x", "unknown parameter 'project'"),
        ("s3:/bucket/db", r"s3: without two slashes.*s3://"),
        ("s3//bucket/db", r"s3 without a colon.*write s3://.*or \./s3/"),
        ("", r"an empty text.*is its variable set"),
        ("GS:bucket/db", r"without two slashes.*\./GS:"),
        ("s3://", r"not a bucket name.*s3://bucket/path"),
        ("s3:///db", "not a bucket name"),
        ("s3://b!/db", "not a bucket name"),
        ("s3://b/db", "not a bucket name: 'b'.*3 to 63 letters"),
        ("s3://minio.example.com:9000/bucket/db", r"not a bucket name.*endpoint=http://host:port"),
        ("s3://bucket--use1-az4--x-s3/db", "directory bucket"),
        ("s3://arn:aws:s3:eu-west-1:1:bucket/name", "not the ARN of an access point"),
        ("s3://bucket/db#x", r"no fragment.*%23"),
        ("s3://bucket/db?endpiont=http://h", r"unknown parameter 'endpiont'.*did you mean endpoint"),
        ("s3://bucket/db?force-pathstyle-x=1", "did you mean forcePathStyle"),
        ("s3://bucket/db?zzz=1", "known are endpoint, region"),
        ("s3://bucket/db?region=a&region=b", "given twice"),
        ("s3://bucket/db?endpoint=ftp://h", "not an S3 endpoint"),
        ("s3://bucket/db?endpoint=http://", "not an S3 endpoint"),
        ("s3://bucket/db?endpoint=http://h:port", "not an S3 endpoint"),
        ("s3://bucket/db?skipVerify=maybe", "neither true nor false"),
        ("s3://bucket/db?sseCustomerAlgorithm=AES256", "sseCustomerKey is missing"),
        (f"s3://bucket/db?sseCustomerKey={KEY}&sseCustomerAlgorithm=DES", "S3 knows AES256"),
        ("s3://bucket/db?sseCustomerKey=c2hvcnQ%3D", "not base64 of 32 bytes"),
        ("s3://bucket/db?sseCustomerKey=!!!", "not base64 of 32 bytes"),
        (f"s3://bucket/db?sseCustomerKey={KEY}&sseCustomerKeyMD5=AAAA", "does not belong"),
    ],
)
def test_bad_urls_are_refused_with_a_hint(url: str, message: str):
    with pytest.raises(ReplicaURLError, match=message) as caught:
        open_replica_client(url)
    assert isinstance(caught.value, OptionError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.plan("K01", "K09")
@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIDSECRET:hunter2secret@bucket/db",
        "s3://AKIDSECRET@bucket/db",
        "s3://bucket/db?endpoint=http://AKIDSECRET:hunter2secret@host",
        "s3://bucket/db?sseCustomerKey=AKIDSECRET",
        "https://user:AKIDSECRET@host/db",
        "https://user:hunter2secret@host:port/db",
        f"s3://bucket/db?sseCustomerKey={KEY}&sseCustomerKeyMD5=AKIDSECRET",
    ],
)
def test_secrets_in_a_url_are_refused_without_repeating_them(url: str):
    with pytest.raises(ReplicaURLError) as caught:
        open_replica_client(url)
    for text in (str(caught.value), repr(caught.value)):
        assert "AKIDSECRET" not in text
        assert "hunter2secret" not in text


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("s3://bucket/db", "s3://bucket/db"),
        ("S3://bucket/db", "s3://bucket/db"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a b", "s3://bucket/a%20b"),
        ("s3://bucket/db?forcePathStyle=false&skipVerify=0", "s3://bucket/db"),
        ("s3://bucket/db?endpoint=localhost:9000", "s3://bucket/db?endpoint=https://localhost:9000"),
        (
            "s3://bucket/db?force-path-style=TRUE&region=eu-west-1&endpoint=HTTP://LocalHost:9000/",
            "s3://bucket/db?endpoint=http://localhost:9000&region=eu-west-1",
        ),
        ("s3://bucket/db?endpoint=http://h&forcePathStyle=0", "s3://bucket/db?endpoint=http://h&forcePathStyle=false"),
        ("s3://bucket/db?endpoint=https://h/base/", "s3://bucket/db?endpoint=https://h/base"),
        (
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/some/path",
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/some/path",
        ),
        (
            "s3://arn:aws:s3-outposts:eu-west-1:1:outpost/op-1/accesspoint/ap/db",
            "s3://arn:aws:s3-outposts:eu-west-1:1:outpost/op-1/accesspoint/ap/db",
        ),
    ],
)
def test_s3_urls_that_mean_the_same_are_spelled_the_same(url: str, canonical: str):
    assert canonical_url(url) == canonical
    assert canonical_url(canonical) == canonical


def test_keys_of_access_points_are_below_the_path_behind_the_arn():
    location = parse_s3_url("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/some/path")
    assert location.bucket == "arn:aws:s3:eu-west-1:123456789012:accesspoint/name"
    assert location.prefix == "some/path/"


def test_an_encryption_key_is_kept_out_of_the_url_yet_tells_replicas_apart():
    one, same, other, none = (
        canonical_url(f"s3://bucket/db{query}")
        for query in (
            f"?sseCustomerKey={KEY}",
            f"?sseCustomerAlgorithm=AES256&sseCustomerKey={KEY}",
            f"?sseCustomerKey={OTHER_KEY}",
            "",
        )
    )
    assert one == same
    assert len({one, other, none}) == 3
    assert KEY[:20] not in one
    assert KEY[:20] not in repr(parse_s3_url(f"s3://bucket/db?sseCustomerKey={KEY}"))


def test_the_endpoint_of_the_environment_is_part_of_what_a_url_means(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITESTREAM_S3_ENDPOINT", "http://minio:9000")
    assert canonical_url("s3://bucket/db") == "s3://bucket/db?endpoint=http://minio:9000"
    assert canonical_url("s3://bucket/db?endpoint=http://h") == "s3://bucket/db?endpoint=http://h"


def test_opening_an_s3_client_asks_for_nothing(monkeypatch: pytest.MonkeyPatch):
    """No connection, no credentials: the host does not exist, and there are no keys."""
    client = open_replica_client("s3://bucket/db?endpoint=http://nosuchhost.invalid", read_timeout_s=1.0)
    assert isinstance(client, S3ReplicaClient)
    assert client.requests == {}
    client.close()


def test_further_schemes_can_be_registered():
    def factory(url: str, *, read_timeout_s: float) -> MemoryReplicaClient:
        assert read_timeout_s == 3.0
        return MemoryReplicaClient(memory_store(url))

    register_scheme("Other", factory)
    try:
        client = open_replica_client("other://x", read_timeout_s=3.0)
        assert isinstance(client, MemoryReplicaClient)
        assert client.store is memory_store("other://x")
    finally:
        drop_memory_store("other://x")
        from litevfs.replica_clients import urls

        del urls._factories["other"]

"""Hosts of providers in S3 URLs mean what they mean to Litestream 0.5."""

from __future__ import annotations

import pytest

from litevfs.errors import ReplicaURLError
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.replica_clients.s3.url import parse_s3_url
from litevfs.replica_clients.urls import absolute_url, canonical_url

# URL, then bucket, path, region, endpoint, and whether the bucket goes into the path.
URLS = [
    ("s3://bkt/db", "bkt", "db", None, None, False),
    ("s3://my.dotted.bucket/db", "my.dotted.bucket", "db", None, None, False),
    ("s3://bkt.s3.amazonaws.com/db", "bkt", "db", None, None, False),
    ("s3://bkt.s3.eu-west-1.amazonaws.com/db", "bkt", "db", "eu-west-1", None, False),
    ("s3://a.b.s3.us-gov-west-1.amazonaws.com/db", "a.b", "db", "us-gov-west-1", None, False),
    ("s3://s3.eu-west-1.amazonaws.com/bkt/db", "bkt", "db", "eu-west-1", None, False),
    ("s3://bkt.sfo3.digitaloceanspaces.com/db", "bkt", "db", "sfo3", "https://sfo3.digitaloceanspaces.com", False),
    ("s3://sfo3.digitaloceanspaces.com/bkt/a/db", "bkt", "a/db", "sfo3", "https://sfo3.digitaloceanspaces.com", False),
    (
        "s3://bkt.s3.us-west-002.backblazeb2.com/db",
        "bkt",
        "db",
        "us-west-002",
        "https://s3.us-west-002.backblazeb2.com",
        True,
    ),
    ("s3://bkt.s3.filebase.com/db", "bkt", "db", None, "https://s3.filebase.com", False),
    ("s3://bkt.s3.nl-ams.scw.cloud/db", "bkt", "db", "nl-ams", "https://s3.nl-ams.scw.cloud", False),
    ("s3://s3.nl-ams.scw.cloud/bkt/db", "bkt", "db", "nl-ams", "https://s3.nl-ams.scw.cloud", False),
    (
        "s3://bkt.br-a-b1.storage.c-1.eu-central-1.aws.neon.tech/db",
        "bkt",
        "db",
        "eu-central-1",
        "https://br-a-b1.storage.c-1.eu-central-1.aws.neon.tech",
        True,
    ),
    (
        "s3://bkt.s3.eu-central-1.wasabisys.com/db",
        "bkt",
        "db",
        "eu-central-1",
        "https://s3.eu-central-1.wasabisys.com",
        False,
    ),
    ("s3://bkt.s3.wasabisys.com/db", "bkt", "db", None, "https://s3.wasabisys.com", False),
    ("s3://bkt.us-east-1.linodeobjects.com/db", "bkt", "db", "us-east-1", "https://us-east-1.linodeobjects.com", False),
    ("s3://bkt.fsn1.your-objectstorage.com/db", "bkt", "db", "fsn1", "https://fsn1.your-objectstorage.com", False),
    ("s3://bkt.fly.storage.tigris.dev/db", "bkt", "db", "auto", "https://fly.storage.tigris.dev", False),
    ("s3://storage.googleapis.com/bkt/db", "bkt", "db", "auto", "https://storage.googleapis.com", True),
    ("s3://bkt.localhost:9000/db", "bkt", "db", "us-east-1", "http://localhost:9000", True),
    ("s3://localhost:9000/bkt/db", "bkt", "db", "us-east-1", "http://localhost:9000", True),
    ("s3://bkt.127.0.0.1:9000/db", "bkt", "db", "us-east-1", "http://127.0.0.1:9000", True),
    ("s3://127.0.0.1:9000/bkt/db", "bkt", "db", "us-east-1", "http://127.0.0.1:9000", True),
    ("s3://bkt.minio.internal:9000/a%20b", "bkt", "a b", "us-east-1", "http://minio.internal:9000", True),
    ("s3://bkt/db?endpoint=https://s3.nl-ams.scw.cloud", "bkt", "db", None, "https://s3.nl-ams.scw.cloud", True),
    ("s3://bkt.sfo3.digitaloceanspaces.com/db?endpoint=http://proxy:80", "bkt", "db", "sfo3", "http://proxy:80", True),
    (
        "s3://bkt.sfo3.digitaloceanspaces.com/db?region=x&force-path-style=1",
        "bkt",
        "db",
        "x",
        "https://sfo3.digitaloceanspaces.com",
        True,
    ),
    ("oss://bkt/db", "bkt", "db", "cn-hangzhou", "https://s3.oss-cn-hangzhou.aliyuncs.com", False),
    (
        "oss://bkt.oss-cn-beijing.aliyuncs.com/db",
        "bkt",
        "db",
        "cn-beijing",
        "https://s3.oss-cn-beijing.aliyuncs.com",
        False,
    ),
    (
        "oss://bkt.oss-cn-beijing-internal.aliyuncs.com/db",
        "bkt",
        "db",
        "cn-beijing",
        "https://s3.oss-cn-beijing-internal.aliyuncs.com",
        False,
    ),
]


@pytest.mark.parametrize(("url", "bucket", "path", "region", "endpoint", "in_path"), URLS)
def test_a_host_of_a_provider_is_understood(url: str, bucket: str, path: str, region: str, endpoint: str, in_path: int):
    location = parse_s3_url(url)
    assert (location.bucket, location.path, location.region, location.endpoint) == (bucket, path, region, endpoint)
    assert location.force_path_style == bool(in_path)


@pytest.mark.parametrize("url", [url for url, *_ in URLS])
def test_the_canonical_url_means_the_same_and_stays(url: str):
    canonical = canonical_url(url)
    assert canonical_url(canonical) == canonical
    # An endpoint of the environment is for URLs that name none.
    assert parse_s3_url(canonical, "http://elsewhere" if "endpoint=" in canonical else None) == parse_s3_url(url)


def test_a_providers_host_wins_over_the_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITESTREAM_S3_ENDPOINT", "http://minio:9000")
    url = "s3://bkt.sfo3.digitaloceanspaces.com/db"
    assert "sfo3.digitaloceanspaces.com" in canonical_url(url)
    assert absolute_url(url) == url


@pytest.mark.parametrize(
    "url", ["s3://s3.nl-ams.scw.cloud/", "s3://localhost:9000", "oss://oss-cn-beijing.aliyuncs.com"]
)
def test_a_host_without_a_bucket_is_refused(url: str):
    with pytest.raises(ReplicaURLError, match="not a bucket name"):
        parse_s3_url(url)


def test_alibabas_files_lie_as_litestream_puts_them_there():
    client = S3ReplicaClient("oss://bkt/db")
    assert (
        client.url
        == "oss://bkt/db?endpoint=https://s3.oss-cn-hangzhou.aliyuncs.com&region=cn-hangzhou&forcePathStyle=false"
    )
    assert client._folder(0) == "db/ltx/0/"
    client.close()


@pytest.mark.parametrize(
    "name", ["signPayload", "sign-accept-encoding", "requireContentMD5", "concurrency", "part-size"]
)
def test_what_litestream_needs_to_be_told_is_taken_and_has_no_effect(name: str):
    assert canonical_url(f"s3://bkt/db?{name}=1") == "s3://bkt/db"


def test_parameters_of_what_is_written_are_sent():
    location = parse_s3_url(
        "s3://bkt/db?storage-class=STANDARD_IA&sse-kms-key-id=arn:aws:kms:eu-west-1:1:key/a-b&acl=private&requestPayer=requester"
    )
    assert location.write_headers == {
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:eu-west-1:1:key/a-b",
        "x-amz-acl": "private",
    }
    assert location.requester_pays
    assert parse_s3_url(location.url) == location
    for bad in ("acl=a%0d%0ab", "storageClass=%C3%BC", "requestPayer=me", "anonymous=perhaps"):
        with pytest.raises(ReplicaURLError):
            parse_s3_url(f"s3://bkt/db?{bad}")

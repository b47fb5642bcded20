"""Where variables say all, a bucket is reached without botocore, and as botocore would reach it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import botocore.loaders
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from litevfs.replica_clients.http import transport
from litevfs.replica_clients.s3 import environment
from litevfs.replica_clients.s3.client import S3ReplicaClient

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
REGIONS = ["us-east-1", "ap-southeast-7", "mx-central-1", "cn-north-1", "us-gov-west-1", "eusc-de-east-1", "aws-global"]
BUCKETS = ["my-bucket", "a1b", "with.dots", "two--hyphens", "access-s3alias", "Capitals_1"]
PREFIX = "a path/ü~"
LOADER = botocore.loaders.create_loader()
"""It remembers what it has read: botocore's descriptions of all services take half a second."""


@pytest.fixture(autouse=True)
def variables(monkeypatch, tmp_path):
    """AWS's variables: two keys, and files that do not exist."""
    for name in os.environ:
        if name.startswith(("AWS_", "LITESTREAM_", "OSS_")):
            monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return monkeypatch


def botocore_url(bucket: str, region: str) -> str | None:
    """The address that botocore gives a bucket, None if it refuses."""
    config = Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
    session = botocore.session.Session()
    session.register_component("data_loader", LOADER)
    try:
        client = session.create_client("s3", region_name=region, config=config)
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": f"{PREFIX}/x"})
    except BotoCoreError:
        return None
    return url.partition("?")[0].removesuffix("/x")


def our_url(bucket: str, region: str) -> str:
    client = S3ReplicaClient(f"s3://{bucket}/{PREFIX}?region={region}")
    try:
        return client.access.object_url(f"{PREFIX}/")
    finally:
        client.close()


@pytest.mark.parametrize("region", REGIONS)
def test_buckets_have_the_addresses_that_botocore_gives_them(region):
    assert our_url("my-bucket", region).rstrip("/") == botocore_url("my-bucket", region)


@pytest.mark.parametrize("bucket", BUCKETS)
def test_buckets_of_any_name_have_the_addresses_that_botocore_gives_them(bucket):
    assert our_url(bucket, "eu-north-1").rstrip("/") == botocore_url(bucket, "eu-north-1")


def test_directory_buckets_are_left_to_botocore():
    assert environment.bucket_url("mine--usw2-az1--x-s3", "us-west-2") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "true"),
        ("AWS_USE_FIPS_ENDPOINT", "true"),
        ("AWS_S3_US_EAST_1_REGIONAL_ENDPOINT", "regional"),
    ],
)
def test_variables_that_change_addresses_count(variables, name, value):
    usual = our_url("my-bucket", "us-east-1")
    variables.setenv(name, value)
    ours = our_url("my-bucket", "us-east-1")
    assert ours.rstrip("/") == botocore_url("my-bucket", "us-east-1")
    assert ours != usual


@pytest.mark.parametrize("kind", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_what_a_configuration_file_says_counts(variables, tmp_path, kind):
    authorities = tmp_path / "authorities.pem"
    (tmp_path / kind).write_text(f"[default]\nregion = eu-south-1\nca_bundle = {authorities}\n")
    client = S3ReplicaClient("s3://my-bucket/path")
    try:
        assert client.access.region == "eu-south-1"
        assert client.access.certificates() == str(authorities)
        variables.setenv("AWS_DEFAULT_REGION", "eu-west-3")
        variables.setenv("AWS_CA_BUNDLE", "/other.pem")
        client.access._forget()
        assert client.access.region == "eu-west-3"
        assert client.access.certificates() == "/other.pem"
    finally:
        client.close()


def test_a_profile_that_is_asked_for_is_looked_for(variables):
    assert environment.is_all()
    variables.setenv("AWS_PROFILE", "other")
    assert not environment.is_all()


def test_the_usual_authorities_are_those_of_botocore():
    assert transport._usual_authorities() == get_cert_path(True)


@pytest.mark.parametrize("has_file", [False, True])
def test_botocore_is_loaded_only_where_it_is_asked(variables, tmp_path, has_file):
    variables.setenv("AWS_REGION", "eu-north-1")
    if has_file:
        (tmp_path / "AWS_CONFIG_FILE").write_text("[default]\n")
    program = """
import sys
from litevfs.replica_clients.s3.client import S3ReplicaClient
for url in ("s3://my-bucket/path", "s3://my-bucket/path?endpoint=http://127.0.0.1:9"):
    client = S3ReplicaClient(url)
    client.access.bucket_url(), client.access.credentials(), client.access.certificates()
    client.close()
print("botocore" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == str(has_file)


def test_a_user_without_a_home_has_no_files_of_aws(variables):
    for name in ("HOME", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        variables.delenv(name)
    variables.setattr(pwd, "getpwuid", {}.__getitem__)  # as of a user ID that /etc/passwd lacks
    assert environment.is_all()

"""The least policy that each storage's page names suffices, and with less `litevfs doctor` names what is missing.

Each server enforces the policy itself; the lines of its configuration are taken from the page.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import hmac
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest

from litevfs.operations.doctor import Check, Outcome, examine
from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.conformance_base import TIMESTAMP_MS
from litevfs.testing.s3_server import S3Server
from tests.replica_clients.store_replicas import AzureReplica, FolderReplica, NATSReplica, url_at
from tests.replica_clients.store_servers import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    BUCKET,
    NATS_PASSWORD,
    NATS_USER,
    WEBDAV_PASSWORD,
    azurite,
    nats_server,
    nginx,
    rclone_webdav,
    sshd,
)
from tests.servers import running_minio

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
NATS_BUCKET = "box"
FIXTURE = ROOT / "tests" / "fixtures" / "orders" / "replica"


def lines_of(page: str, language: str, number: int = 0) -> str:
    """The block of that language on a storage's page."""
    text = (ROOT / "docs" / "storages" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[number]


def failed(checks: list[Check]) -> dict[str, str]:
    """What would mend each check that failed, by its name."""
    return {check.name: str(check.mend) for check in checks if check.outcome is Outcome.FAILED}


def reads(url: str) -> dict[str, str]:
    checks = examine(url, read_timeout_s=10, with_writes=False)
    assert checks
    return failed(checks)


def writes(url: str) -> dict[str, str]:
    return failed(examine(url, read_timeout_s=10))


# --- SFTP -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE, tmp_path / "replica")
    return tmp_path / "replica"


def sftp_lines(number: int, options: str | None = None) -> str:
    """The page's lines for the user who runs this test, with the root of this machine as that of the log-in."""
    pytest.importorskip("paramiko", reason="pip install litevfs[sftp]")
    if os.geteuid() != 0:
        pytest.skip("sshd changes its root only as root: run this test as root")
    lines = lines_of("sftp.md", "text", number)
    lines = re.sub(r"Match User \S+", f"Match User {getpass.getuser()}", lines)
    lines = re.sub(r"ChrootDirectory \S+", "ChrootDirectory /", lines)
    return lines if options is None else re.sub(r"internal-sftp.*", f"internal-sftp {options}", lines)


def test_sftp_a_reader_needs_a_server_that_only_reads(tmp_path: Path, folder: Path):
    (tmp_path / "sshd").mkdir()
    with sshd(tmp_path / "sshd", sftp_lines(0)) as (port, keys):
        url = url_at(port, keys, folder)
        assert reads(url) == {}
        assert "write (w) for the user of the URL on" in writes(url)["write"]
    assert list(folder.glob("litevfs-doctor-*")) == []


def test_sftp_a_primary_needs_a_server_that_writes(tmp_path: Path, folder: Path):
    (tmp_path / "sshd").mkdir()
    with sshd(tmp_path / "sshd", sftp_lines(1)) as (port, keys):
        assert writes(url_at(port, keys, folder)) == {}


@pytest.mark.parametrize(
    ("refused", "name", "line"),
    [
        ("opendir", "list", "read and execute (r-x) for the user of the URL on the folders below"),
        ("open", "read", "read (r) for the user of the URL on the files below"),
        ("remove", "delete", "write (w) for the user of the URL on the folders below"),
    ],
)
def test_sftp_less_is_named(tmp_path: Path, folder: Path, refused: str, name: str, line: str):
    (tmp_path / "sshd").mkdir()
    with sshd(tmp_path / "sshd", sftp_lines(1, f"-P {refused}")) as (port, keys):
        assert line in writes(url_at(port, keys, folder))[name]


# --- WebDAV -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dav(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """host:port of a WebDAV server over `folder`'s folder."""
    monkeypatch.setenv("LITEVFS_WEBDAV_PASSWORD", WEBDAV_PASSWORD)
    (tmp_path / "rclone").mkdir()
    with rclone_webdav(folder.parent, tmp_path / "rclone") as server:
        yield server


def through_nginx(dav: str, lines: str) -> str:
    return re.sub(r"proxy_pass http://\S+;", f"proxy_pass http://{dav};", lines)


def webdav_url(endpoint: str) -> str:
    return f"webdav://replicator@{endpoint.removeprefix('http://')}/replica"


def test_webdav_a_reader_needs_two_methods(tmp_path: Path, dav: str):
    (tmp_path / "nginx").mkdir()
    lines = through_nginx(dav, lines_of("webdav.md", "nginx", 0))
    with nginx(tmp_path, tmp_path / "nginx", lines=lines) as endpoint:
        assert reads(webdav_url(endpoint)) == {}
        assert "client_max_body_size" in writes(webdav_url(endpoint))["write"]
    refusing = lines.replace("{", "{\nclient_max_body_size 0;", 1)  # else it refuses a large body whatever the method
    with nginx(tmp_path, tmp_path / "nginx", lines=refusing) as endpoint:
        assert "PUT, MKCOL and MOVE" in writes(webdav_url(endpoint))["write"]


def test_webdav_a_primary_needs_six_methods(tmp_path: Path, dav: str):
    (tmp_path / "nginx").mkdir()
    lines = through_nginx(dav, lines_of("webdav.md", "nginx", 1))
    with nginx(tmp_path, tmp_path / "nginx", lines=lines) as endpoint:
        assert writes(webdav_url(endpoint)) == {}


@pytest.mark.parametrize(
    ("refused", "name", "line"),
    [
        ("PROPFIND", "list", "the method PROPFIND"),
        ("GET", "read", "the method GET"),
        ("MOVE", "write", "the methods PUT, MKCOL and MOVE"),
        ("DELETE", "delete", "the method DELETE"),
    ],
)
def test_webdav_less_is_named(tmp_path: Path, dav: str, refused: str, name: str, line: str):
    (tmp_path / "nginx").mkdir()
    lines = through_nginx(dav, lines_of("webdav.md", "nginx", 1)).replace(f" {refused}", "", 1)
    with nginx(tmp_path, tmp_path / "nginx", lines=lines) as endpoint:
        assert line in writes(webdav_url(endpoint))[name]


# --- a web server -----------------------------------------------------------------------------------------------------


def test_http_a_reader_needs_get_and_head(tmp_path: Path, folder: Path):
    (tmp_path / "nginx").mkdir()
    with nginx(tmp_path, tmp_path / "nginx", lines=lines_of("http.md", "nginx")) as endpoint:
        assert reads(f"{endpoint}/replica") == {}


@pytest.mark.parametrize(
    ("lines", "is_indexed", "name", "line"),
    [
        ("location / { deny all; }", False, "list", "let the server list its folders"),
        (r"location ~ \.ltx$ { deny all; }", False, "list", "allow GET and HEAD of /replica and all below"),
        (r"location ~ \.ltx$ { deny all; }", True, "read", "allow GET and HEAD below /replica"),
    ],
)
def test_http_less_is_named(tmp_path: Path, folder: Path, lines: str, is_indexed: bool, name: str, line: str):
    (tmp_path / "nginx").mkdir()
    with nginx(tmp_path, tmp_path / "nginx", lines=lines) as endpoint:
        url = f"{endpoint}/replica"
        FolderReplica(url, folder, is_indexed=is_indexed)
        assert line in reads(url)[name]


# --- Azure ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a replica with one file; the key of its account is in the environment for its making only."""
    with azurite(tmp_path_factory.mktemp("azurite")) as endpoint:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LITESTREAM_AZURE_ACCOUNT_KEY", AZURE_KEY)
            replica = AzureReplica(endpoint)
            source = next((FIXTURE / "ltx" / "0").iterdir())
            replica.put(0, source.name, source.read_bytes())
            replica.http.clear()
        yield replica.url


def sas_token(letters: str) -> str:
    """A service SAS of the container, by the reference "Create a service SAS"."""
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    version = "2019-12-12"
    fields = [letters, "", until, f"/blob/{AZURE_ACCOUNT}/{BUCKET}", "", "", "", version, "c", "", *[""] * 5]
    key = base64.b64decode(AZURE_KEY)
    signature = base64.b64encode(hmac.digest(key, "\n".join(fields).encode(), hashlib.sha256)).decode()
    return urlencode({"sv": version, "se": until, "sr": "c", "sp": letters, "sig": signature})


def azure_letters(who: str) -> str:
    text = (ROOT / "docs" / "storages" / "azure.md").read_text()
    found = re.search(rf"^\| {who} \|.*\| `([a-z]+)` \|$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def test_azure_a_reader_needs_its_letters(azure: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", sas_token(azure_letters("a reader")))
    assert reads(azure) == {}
    assert "permissions c and w" in writes(azure)["write"]


def test_azure_a_primary_needs_its_letters(azure: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", sas_token(azure_letters("a primary")))
    assert writes(azure) == {}


@pytest.mark.parametrize(
    ("letters", "name", "line"),
    [("rcwd", "list", "permission l"), ("cwdl", "read", "permission r"), ("rcwl", "delete", "permission d")],
)
def test_azure_less_is_named(azure: str, monkeypatch: pytest.MonkeyPatch, letters: str, name: str, line: str):
    monkeypatch.setenv("LITESTREAM_AZURE_SAS_TOKEN", sas_token(letters))
    assert line in writes(azure)[name]


# --- NATS -------------------------------------------------------------------------------------------------------------


def rights(number: int, without: str = "") -> str:
    """The rights of a user on the page, without one of the subjects."""
    lines = lines_of("nats.md", "text", number).replace("orders", NATS_BUCKET)
    found = re.fullmatch(r"permissions: \{\n(.*)\}\n", lines, re.DOTALL)
    assert found is not None
    assert without in found[1]
    return found[1].replace(without, '"nothing"') if without else found[1]


@contextmanager
def limited_nats(work: Path, rights: str, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a replica with a small and a large file, as a user sees it that has these rights alone."""
    pytest.importorskip("nats", reason="pip install litevfs[nats]")
    patch.setenv("LITEVFS_NATS_PASSWORD", NATS_PASSWORD)
    with nats_server(work, rights) as port:
        NATSReplica.run(SimpleNamespace(port=port), lambda js: js.create_object_store(NATS_BUCKET))
        with closing(open_replica_client(f"nats://{NATS_USER}@127.0.0.1:{port}/{NATS_BUCKET}")) as writer:
            for txid, size in enumerate((10, 400_000), start=1):
                writer.write(0, txid, txid, os.urandom(size), TIMESTAMP_MS)
        yield f"nats://limited@127.0.0.1:{port}/{NATS_BUCKET}"


def test_nats_a_reader_needs_its_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with limited_nats(tmp_path, rights(0), monkeypatch) as url:
        assert reads(url) == {}
        assert f'publish to "$O.{NATS_BUCKET}.>"' in writes(url)["write"]


def test_nats_a_primary_needs_its_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with limited_nats(tmp_path, rights(1), monkeypatch) as url:
        assert writes(url) == {}


@pytest.mark.parametrize(
    ("without", "name", "found"),
    [
        ("$JS.API.STREAM.INFO.OBJ_box", "list", 'to publish to "$JS.API.STREAM.INFO.OBJ_box"'),
        ("$JS.API.CONSUMER.*.OBJ_box", "list", 'to publish to "$JS.API.CONSUMER.CREATE.OBJ_box"'),
        ("$JS.API.CONSUMER.*.OBJ_box.>", "list", 'to publish to "$JS.API.CONSUMER.INFO.OBJ_box.'),
        ("$JS.API.DIRECT.GET.OBJ_box", "read", 'to publish to "$JS.API.DIRECT.GET.OBJ_box"'),
        ("$O.box.>", "write", 'to publish to "$O.box.C.'),
        ("$JS.API.STREAM.PURGE.OBJ_box", "delete", 'to publish to "$JS.API.STREAM.PURGE.OBJ_box"'),
        ("_INBOX.>", "list", 'to subscribe to "_inbox.'),
    ],
)
def test_nats_less_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str, name: str, found: str
):
    with limited_nats(tmp_path, rights(1, f'"{without}"'), monkeypatch) as url:
        checks = examine(url, read_timeout_s=60)
    (check,) = [check for check in checks if check.name == name and check.outcome is Outcome.FAILED]
    assert f"refuses {found}" in check.detail
    assert f'"{without}"' in str(check.mend)


# --- S3 ---------------------------------------------------------------------------------------------------------------


WRITING = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"]


def s3_policy(*, without: str = "", writing: bool = False) -> str:
    """The page's policy for a reader, or with what a primary needs besides; `without` one of its actions."""
    policy = json.loads(lines_of("s3.md", "json").replace("my-bucket", BUCKET))
    listing, reading = policy["Statement"]
    reading["Action"] = [reading["Action"], *(WRITING if writing else [])]
    reading["Action"] = [action for action in reading["Action"] if action != without]
    policy["Statement"] = [one for one in (listing, reading) if one["Action"] not in ([], without)]
    return json.dumps(policy)


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server with a replica at `orders`."""
    with running_minio(tmp_path_factory.mktemp("minio")) as server:
        raw = server.boto3_client()
        raw.create_bucket(Bucket=BUCKET)
        for path in (FIXTURE / "ltx").rglob("*.ltx"):
            level = int(path.parent.name)
            raw.put_object(Bucket=BUCKET, Key=f"orders/{level:04x}/{path.name}", Body=path.read_bytes())
        raw.close()
        yield server


@pytest.fixture
def limited_s3(minio: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The URL of the replica; temporary keys with the given policy alone are put into the environment."""
    boto3 = pytest.importorskip("boto3")

    def limited(policy: str) -> str:
        for name in [name for name in os.environ if name.startswith(("AWS_", "LITESTREAM_"))]:
            monkeypatch.delenv(name)
        own = {"aws_access_key_id": minio.access_key, "aws_secret_access_key": minio.secret_key}
        service = boto3.client("sts", endpoint_url=minio.endpoint, region_name="us-east-1", **own)
        role = {"RoleArn": "arn:xxx:xxx:xxx:xxxx", "RoleSessionName": "limited"}
        keys = service.assume_role(Policy=policy, DurationSeconds=900, **role)["Credentials"]
        service.close()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
        monkeypatch.setenv("AWS_SESSION_TOKEN", keys["SessionToken"])
        return f"s3://{BUCKET}/orders?endpoint={minio.endpoint}"

    return limited


def test_s3_a_reader_needs_the_pages_policy(limited_s3: Callable[[str], str]):
    url = limited_s3(s3_policy())
    assert reads(url) == {}
    assert '"s3:PutObject"' in writes(url)["write"]


def test_s3_a_primary_needs_the_pages_policy(limited_s3: Callable[[str], str]):
    assert writes(limited_s3(s3_policy(writing=True))) == {}


@pytest.mark.parametrize(
    ("without", "name"), [("s3:ListBucket", "list"), ("s3:GetObject", "read"), ("s3:DeleteObject", "delete")]
)
def test_s3_less_is_named(limited_s3: Callable[[str], str], without: str, name: str):
    assert f'allow "{without}"' in writes(limited_s3(s3_policy(without=without, writing=True)))[name]

"""Server programs of others that tests run on loopback ports: how each is started. Skips where a program is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from litevfs.testing.s3_server import S3Server
from litevfs.testing.server_process import find_program, free_port, running_server

_HOW_TO_GET = {
    "minio": "go install github.com/minio/minio@latest",
    "versitygw": "go install github.com/versity/versitygw/cmd/versitygw@latest",
    "rclone": "go install github.com/rclone/rclone@latest",
    "fake-gcs-server": "go install github.com/fsouza/fake-gcs-server@latest",
    "nats-server": "go install github.com/nats-io/nats-server/v2@latest",
    "azurite-blob": "npm install -g azurite",
    "nginx": "apt-get install nginx-light",
    "sshd": "apt-get install openssh-server",
    "litestream": "go install github.com/benbjohnson/litestream/cmd/litestream@latest",
}
ACCESS_KEY, SECRET_KEY = "testing-access-key", "testing-secret-key"


def need_program(name: str) -> str:
    """The path of a server program; the test is skipped, with the way to get it, where there is none."""
    path = find_program(name)
    if path is None:
        pytest.skip(f"{name} is not on the PATH nor in the cache folder; get it by: {_HOW_TO_GET[name]}")
    return path


@contextmanager
def running_minio(folder: Path, port: int = 0) -> Iterator[S3Server]:
    """MinIO, without buckets at first; at a free port, or again at the one where it was before."""
    program, port = need_program("minio"), port or free_port()
    server = S3Server("minio", f"http://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY)
    command = [program, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder / "data")]
    environment = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
    environment |= {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "MINIO_CI_CD": "1"}
    ready = f"{server.endpoint}/minio/health/ready"
    with running_server(command, log=folder / "log", port=port, ready_url=ready, environment=environment):
        yield server


def use_bucket(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a bucket on the server, and let its credentials be those of this process's environment."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "LITESTREAM_S3_ENDPOINT", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    with closing(server.boto3_client()) as raw:
        raw.create_bucket(Bucket=bucket)


@contextmanager
def running_versitygw(folder: Path) -> Iterator[S3Server]:
    """versitygw over a folder, without buckets."""
    program, port = need_program("versitygw"), free_port()
    (folder / "data").mkdir()
    (folder / "sidecar").mkdir()
    command = [program, "--port", f"127.0.0.1:{port}", "--access", ACCESS_KEY, "--secret", SECRET_KEY]
    command += ["posix", "--sidecar", str(folder / "sidecar"), str(folder / "data")]  # no need of extended attributes
    with running_server(command, log=folder / "log", port=port, environment={"ROOT_ACCESS_KEY": ACCESS_KEY}):
        yield S3Server("versitygw", f"http://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY)


@contextmanager
def running_rclone(folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3` over a folder, without buckets.

    What it knows of a folder stays good for long, as nothing changes but by requests; with "0s" rclone 1.76 comes to a
    dead lock at times.
    """
    program, port = need_program("rclone"), free_port()
    (folder / "data").mkdir()
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    command += ["--vfs-cache-mode", "off", "--dir-cache-time", "1h", str(folder / "data")]
    environment = {"RCLONE_CONFIG": str(folder / "no-config")}
    with running_server(command, log=folder / "log", port=port, environment=environment):
        yield S3Server("rclone", f"http://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY)

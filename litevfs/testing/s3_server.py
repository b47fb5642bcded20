"""A real S3 server on a loopback port, for tests and benchmarks: MinIO where its binary is found, else moto.

Owns the server's process, its port and its data folder. Knows nothing of replicas.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

_REGION = "us-east-1"
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
# Ends the server when our end of its standard input closes, and so also when this process dies in any way.
_WATCHDOG = '"$@" & server=$!; read -r _; kill -9 $server; wait $server'


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where a test server listens, and the credentials it accepts."""

    kind: str  # "minio" or "moto"
    endpoint: str  # scheme, host and port
    access_key: str
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The environment variables that make the AWS credential chain find this server's credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def url(self, bucket: str, path: str = "", *, endpoint: str | None = None) -> str:
        """The replica URL of `path` in `bucket`, on this server or at another `endpoint` (a proxy before it)."""
        return f"s3://{bucket}/{quote(path)}?endpoint={endpoint or self.endpoint}&region={_REGION}"

    def boto3_client(self, **options: Any) -> Any:
        """A plain boto3 S3 client for this server, to look at it past the code under test. Close it after use."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=_REGION,
            config=Config(s3={"addressing_style": "path"}),
            **options,
        )


@contextmanager
def running_s3_server(*, certs_dir: Path | None = None) -> Iterator[S3Server]:
    """An S3 server with no buckets, stopped and its data removed at the end.

    LITEVFS_TEST_S3_SERVER names the MinIO binary, or says `moto`; without it `minio` is looked for on the PATH and
    in the cache folder of the project's checks. `certs_dir` (MinIO only) holds `public.crt` and `private.key`, and
    makes the endpoint an https one. Raises RuntimeError when the server does not come up.
    """
    binary = find_minio()
    with tempfile.TemporaryDirectory(prefix="litevfs-s3-") as folder:
        port = _free_port()
        if binary is None:
            server = S3Server("moto", f"http://127.0.0.1:{port}", "testing-access-key", "testing-secret-key")
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            health_path = "/moto-api/"
        else:
            scheme = "http" if certs_dir is None else "https"
            server = S3Server("minio", f"{scheme}://127.0.0.1:{port}", "testing-access-key", "testing-secret-key")
            command = [binary, "server", "--quiet", "--certs-dir", str(certs_dir or Path(folder, "certs"))]
            command += ["--address", f"127.0.0.1:{port}", str(Path(folder, "data"))]
            health_path = "/minio/health/ready"
        with _process(command, _server_environment(server), Path(folder, "log")) as process:
            _wait_until_ready(process, port, f"{server.endpoint}{health_path}", Path(folder, "log"))
            yield server


def find_minio() -> str | None:
    """The path of a MinIO binary, or None."""
    named = os.environ.get("LITEVFS_TEST_S3_SERVER")
    if named:
        return None if named == "moto" else named
    cache = Path(os.environ.get("LITEVFS_CI_CACHE") or Path.home() / ".cache" / "litevfs-ci")
    return shutil.which("minio") or shutil.which(str(cache / "bin" / "minio"))


def _server_environment(server: S3Server) -> Mapping[str, str]:
    return {
        **os.environ,
        "MINIO_ROOT_USER": server.access_key,
        "MINIO_ROOT_PASSWORD": server.secret_key,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
        "MINIO_CI_CD": "1",  # its own switch for "the disk may be the system's"
    }


@contextmanager
def _process(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C in the terminal is the test runner's; the fixture stops the server
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(port, url):
            return
        time.sleep(0.05)
    raise RuntimeError(f"no S3 server at {url}: {log.read_text(errors='replace')[-2000:]}")


def _answers(port: int, url: str) -> bool:
    if url.startswith("https:"):  # its certificate is a test's own: that it listens has to do
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A real S3 server on a loopback port, for tests and benchmarks: MinIO if its binary is found, else moto.

Owns the server's process, its port and its data folder. Knows nothing of replicas.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from litevfs.testing.server_process import find_program, free_port, running_server

_REGION = "us-east-1"


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
        """The replica URL of `path` in `bucket`, on this server or at another `endpoint` (a proxy in front of it)."""
        return f"s3://{bucket}/{quote(path)}?endpoint={endpoint or self.endpoint}&region={_REGION}"

    def boto3_client(self, **options: Any) -> Any:
        """A plain boto3 S3 client for this server, to read it without the code under test. Close it after use."""
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

    LITEVFS_TEST_S3_SERVER names the MinIO binary, or says `moto`; without it, this looks for `minio` on the PATH and
    in the cache folder of the project's checks. `certs_dir` (MinIO only) holds `public.crt` and `private.key`, and
    makes the endpoint an https one. Raises RuntimeError when the server does not start.
    """
    binary = find_minio()
    with tempfile.TemporaryDirectory(prefix="litevfs-s3-") as folder:
        port = free_port()
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
        ready_url = f"{server.endpoint}{health_path}"
        environment = _server_environment(server)
        with running_server(command, log=Path(folder, "log"), port=port, ready_url=ready_url, environment=environment):
            yield server


def find_minio() -> str | None:
    """The path of a MinIO binary, or None."""
    named = os.environ.get("LITEVFS_TEST_S3_SERVER")
    if named:
        return None if named == "moto" else named
    return find_program("minio")


def _server_environment(server: S3Server) -> Mapping[str, str]:
    return {
        "MINIO_ROOT_USER": server.access_key,
        "MINIO_ROOT_PASSWORD": server.secret_key,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
        "MINIO_CI_CD": "1",  # its own switch for "the disk may be the system's"
    }

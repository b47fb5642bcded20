"""Servers of the storages beside S3, each on a free loopback port, started and stopped by a test."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import urllib3

from litevfs.testing.server_process import free_port, running_server
from tests.servers import need_program

BUCKET = "litevfs-test"


class QuietHandler(SimpleHTTPRequestHandler):
    """The standard library's static server: lists folders in HTML, ignores Range, sends Last-Modified and no ETag."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def static_server(folder: Path, handler: type[SimpleHTTPRequestHandler] = QuietHandler) -> Iterator[str]:
    """The URL of a static HTTP server of `folder` in this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that hangs up is no news
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextmanager
def nginx(folder: Path, work: Path, *, autoindex: bool = True, lines: str = "") -> Iterator[str]:
    """The URL of an nginx that serves `folder`; `lines` are further ones of its server."""
    program, port = need_program("nginx"), free_port()
    config = work / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/error.log;\n"
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;"
        f" uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; autoindex {'on' if autoindex else 'off'};\n{lines}\n"
        "} }\n"
    )
    with running_server([program, "-p", str(work), "-c", str(config)], log=work / "log", port=port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def fake_gcs(work: Path, *, port: int | None = None, external_url: str | None = None) -> Iterator[str]:
    """The endpoint of a Google Cloud Storage of this machine, with the bucket `BUCKET`."""
    program, port = need_program("fake-gcs-server"), port or free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-external-url", external_url or endpoint, "-public-host", f"127.0.0.1:{port}"]
    ready = f"{endpoint}/_internal/healthcheck"
    with running_server(command, log=work / "log", port=port, ready_url=ready):
        body = json.dumps({"name": BUCKET}).encode()
        headers = {"Content-Type": "application/json"}
        with urllib3.PoolManager() as http:
            made = http.request("POST", f"{endpoint}/storage/v1/b?project=p", body=body, headers=headers)
        assert made.status == 200, made.data
        yield endpoint


AZURE_ACCOUNT = "devstoreaccount1"
# The key that Azurite's documentation gives for this account of this machine.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def azurite(work: Path) -> Iterator[str]:
    """The endpoint of an Azure Blob Storage of this machine, without containers."""
    program, port = need_program("azurite-blob"), free_port()
    command = [program, "--inMemoryPersistence", "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--disableTelemetry", "--skipApiVersionCheck"]
    with running_server(command, log=work / "log", port=port):
        yield f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"


@contextmanager
def sshd(work: Path, lines: str = "") -> Iterator[tuple[int, Path]]:
    """An OpenSSH server with SFTP alone: its port, and a folder with `client_key`, `known_hosts` and `host_key.pub`.

    `lines` are the last ones of its configuration.
    """
    program, port = need_program("sshd"), free_port()
    for name in ("host_key", "client_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    shutil.copy(work / "client_key.pub", work / "authorized_keys")
    public = (work / "host_key.pub").read_text()
    (work / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    config = work / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {work}/host_key\nPidFile {work}/pid\n"
        f"AuthorizedKeysFile {work}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\nPermitRootLogin yes\nMaxStartups 100\n{lines}"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates its privileges, as its package makes it
    with running_server([program, "-D", "-e", "-f", str(config)], log=work / "log", port=port):
        yield port, work


WEBDAV_USER, WEBDAV_PASSWORD = "replicator", "a webdav password"


@contextmanager
def rclone_webdav(folder: Path, work: Path) -> Iterator[str]:
    """host:port of a WebDAV server over `folder`."""
    program, port = need_program("rclone"), free_port()
    # It must learn of every change by a request: with a short --dir-cache-time, which would look into the folder again,
    # rclone 1.76 blocks itself for ever.
    command = [program, "serve", "webdav", "--addr", f"127.0.0.1:{port}", "--dir-cache-time", "1h"]
    command += ["--user", WEBDAV_USER, "--pass", WEBDAV_PASSWORD, "--vfs-cache-mode", "off", str(folder)]
    environment = {"RCLONE_CONFIG": str(work / "no-config")}
    with running_server(command, log=work / "log", port=port, environment=environment):
        yield f"127.0.0.1:{port}"


NATS_USER, NATS_PASSWORD = "replicator", "a-nats-password"


@contextmanager
def nats_server(work: Path, rights: str = "") -> Iterator[int]:
    """The port of a NATS server with JetStream, without buckets. `rights` are those of a further user, `limited`."""
    program, port = need_program("nats-server"), free_port()
    limited = f', {{user: limited, password: "{NATS_PASSWORD}", permissions: {{{rights}}}}}' if rights else ""
    config = work / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{work}/data" }}\n'
        f'authorization {{ users: [ {{user: {NATS_USER}, password: "{NATS_PASSWORD}"}} {limited} ] }}\n'
    )
    with running_server([program, "-c", str(config)], log=work / "log", port=port):
        yield port

"""Servers of the storages beside S3, each on a free loopback port, started and stopped by a test."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

START_S = 20.0
CACHE = Path(os.environ.get("LITEVFS_CI_CACHE") or Path.home() / ".cache" / "litevfs-ci")


def find_program(name: str, how: str) -> str:
    """The path of a program, in PATH or in the cache of built ones; skips the test when there is none."""
    places = [CACHE / "bin", CACHE / "azurite" / "node_modules" / ".bin", Path("/usr/sbin"), Path("/usr/lib/openssh")]
    path = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, places)))
    if path is None:
        pytest.skip(f"there is no {name}: {how}")
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, folder: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens on `port`, stopped at the end; its output is in `folder`/server.log."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder, **options
        )
    try:
        _wait_for(port, process, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    pause = threading.Event()
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            pause.wait(0.02)
        else:
            return
    raise AssertionError(f"{process.args} does not listen: {log.read_text(errors='replace')[-2000:]}")


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
def nginx(folder: Path, work: Path, *, autoindex: bool = True) -> Iterator[str]:
    """The URL of an nginx that serves `folder`."""
    program = find_program("nginx", "apt-get install nginx-light")
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(
        f"daemon off; pid {work}/nginx.pid; error_log {work}/error.log; worker_processes 1;\n"
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;"
        f" uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; autoindex {'on' if autoindex else 'off'}; }} }}\n"
    )
    with running([program, "-p", str(work), "-c", str(config)], port, work):
        yield f"http://127.0.0.1:{port}"

"""Programs that serve on a loopback port while a test runs: found, started, waited for, stopped.

Knows nothing of what they serve. Looks for a program on the PATH and in the cache folder of the project's checks.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_LOG_TAIL = 2000  # characters of a server's output in an error
# Ends the server when our end of its standard input closes, and so also when this process dies in any way.
_WATCHDOG = '"$@" & server=$!; read -r _; kill -9 $server; wait $server'


def find_program(name: str) -> str | None:
    """The path of a program on the PATH or in the cache folder (LITEVFS_CI_CACHE), or None."""
    cache = Path(os.environ.get("LITEVFS_CI_CACHE") or Path.home() / ".cache" / "litevfs-ci")
    return shutil.which(name) or shutil.which(str(cache / "bin" / name))


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    command: Sequence[str],
    *,
    log: Path,
    port: int,
    ready_url: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Run `command` until the block ends; its output goes to `log`, `environment` is added to that of this process.

    The block starts when `ready_url` answers an http request with any status but 5xx (without one: when `port`
    takes connections). Raises RuntimeError with the end of the log when that takes more than 30 seconds.
    """
    with _process(command, {**os.environ, **(environment or {})}, log) as process:
        _wait_until_ready(process, port, ready_url, log)
        yield


@contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal goes to the test runner only; the fixture stops the server
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
            process.wait(_STOP_TIMEOUT_S)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, url: str | None, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if _takes_connections(port) and (url is None or _answers(url)):
            return
        threading.Event().wait(_POLL_S)
    where = url or f"127.0.0.1:{port}"
    raise RuntimeError(f"no server at {where}: {log.read_text(errors='replace')[-_LOG_TAIL:]}")


def _takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    unverified = ssl.create_default_context()  # the certificate is a test's own
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=2.0):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except OSError:
        return False

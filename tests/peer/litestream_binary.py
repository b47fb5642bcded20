"""Litestream's own program, run as a process: restore, list, replicate. Knows nothing of litevfs.

Everything here has a time limit, and a process that was started is ended by the code that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT_S = 30.0
"""For a command that ends by itself, and for a replicator to end when asked to."""

LITESTREAM = shutil.which("litestream") or ""
"""The program; empty where there is none."""


class LitestreamError(Exception):
    """The program ended with an error; the message is what it said."""


def run(*arguments: object) -> str:
    """What `litestream ARGUMENTS` prints. Raises LitestreamError when it fails."""
    done = subprocess.run(
        [LITESTREAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=_environment(),
        check=False,
    )
    if done.returncode:
        raise LitestreamError(f"litestream {arguments[0]} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def version() -> str:
    """For example `v0.5.18`."""
    return run("version").strip()


def restore(url: str, target: Path, *options: object) -> Path:
    """`litestream restore`: makes `target`, and has it checked."""
    run("restore", "-integrity-check", "full", *options, "-o", target, url)
    return target


def list_files(url: str) -> list[dict[str, Any]]:
    """`litestream ltx`: level, min_txid, max_txid, size and timestamp (in whole seconds) of every file."""
    listed: list[dict[str, Any]] = json.loads(run("ltx", "-level", "all", "-json", url))
    return listed


class Replicating:
    """`litestream replicate` while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it said so far."""
        return self._log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """False when it ended, by itself or because it was asked to."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, which makes it upload what it has not yet, and wait for that. Idempotent."""
        if not self.is_running:
            return
        self._process.terminate()
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


@contextmanager
def replicating(folder: Path, database: Path, url: str, **settings: Any) -> Iterator[Replicating]:
    """Run `litestream replicate` on a database, with a configuration and a log in `folder`.

    `settings` are those of the configuration's top level, underscores for dashes; without any, everything happens
    within seconds: syncs all the time, three levels of compaction, snapshots, and retention of them and of level 0.
    """
    values = {
        "levels": [{"interval": "1s"}, {"interval": "2s"}, {"interval": "4s"}],
        "snapshot": {"interval": "3s", "retention": "4s"},
        "l0_retention": "2s",
        "l0_retention_check_interval": "1s",
        **settings,
    }
    configuration = {
        **{name.replace("_", "-"): value for name, value in values.items()},
        "logging": {"level": "debug"},
        "dbs": [{"path": str(database), "monitor-interval": "50ms", "replica": {"url": url, "sync-interval": "50ms"}}],
    }
    path, log = folder / "litestream.yml", folder / "litestream.log"
    path.write_text(json.dumps(configuration))  # JSON is YAML
    with log.open("ab") as output:
        process = subprocess.Popen(
            [LITESTREAM, "replicate", "-config", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
        )
    replicating = Replicating(process, log)
    try:
        yield replicating
    finally:
        replicating.stop()


def _environment() -> dict[str, str]:
    """Ours, without what would configure Litestream; AWS_CA_BUNDLE makes version 0.5 refuse every S3 replica."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LITESTREAM_") and name != "AWS_CA_BUNDLE"
    }

"""The check of a whole replica: every file, the chain they make, and SQLite's own check of the newest state.

Combines the parts of `operations.verify`, which judges each part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from litevfs.errors import RestoreError
from litevfs.files.fetch import Fetcher
from litevfs.files.plan import Chain
from litevfs.operations.restore import integrity_findings
from litevfs.operations.target import RestoreTarget, temporary_target
from litevfs.operations.verify import (
    FileCheck,
    Findings,
    Problem,
    check_files,
    check_newest_state,
    judge,
    without_deleted,
)
from litevfs.replica_clients.base import LEVELS

logger = logging.getLogger("litevfs.operations.whole_check")

Progress = Callable[[int, int], None]
"""Called with (bytes read so far, bytes to read in all)."""
CheckInPlace = Callable[[int], list[str]]
"""TXID -> the lines of `PRAGMA integrity_check` of that state, read in place."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of the check of a replica."""

    url: str
    files: int
    size: int  # bytes
    seconds: float
    findings: Findings
    integrity: str | None  # "ok", "failed", or None when it was not checked

    @property
    def is_sound(self) -> bool:
        """Whether no problem was found."""
        return not self.findings.problems


def check_replica(fetcher: Fetcher, check_in_place: CheckInPlace | None, progress: Progress | None = None) -> Report:
    """Read every file whole and judge what they make; with `check_in_place` also SQLite's integrity check.

    A remote replica is read once, if there is room for its database in the folder for temporary files; else the check
    reads it again, in place. Raises StorageError.
    """
    with ExitStack() as stack:
        # Reading a local file twice costs less than writing it once.
        target = _room(stack) if check_in_place is not None and fetcher.is_remote else None
        report, restored = _check_files(fetcher, target, progress)
        newest = report.findings.newest
        if check_in_place is None or not newest:
            return report
        on_disk = target if restored == newest else None
        lines = integrity_findings(on_disk) if on_disk else check_in_place(newest.txid)
        return _with_integrity(report, lines, newest.txid)


def _room(stack: ExitStack) -> RestoreTarget | None:
    """A target for the newest state while it is checked, until the stack is closed."""
    try:
        return stack.enter_context(temporary_target())
    except RestoreError as error:
        logger.info("%s", error)
        return None


def _check_files(
    fetcher: Fetcher, target: RestoreTarget | None, progress: Progress | None
) -> tuple[Report, Chain | None]:
    """The checks of the files, and the state that is in `target` now, if any."""
    started = time.monotonic()
    # Lowest level first: files that retention deletes first are read first.
    files = fetcher.list_levels(LEVELS)
    total, done = sum(file.size for file in files), 0

    def note(check: FileCheck) -> None:
        nonlocal done
        done += check.file.size
        if progress is not None:
            progress(done, total)

    restored = None
    checks: list[FileCheck] = []
    if target is not None:
        checks, restored = check_newest_state(fetcher, files, target, note)
    checked = {check.file for check in checks}
    checks += check_files(fetcher, [file for file in files if file not in checked], note)
    checks = without_deleted(fetcher, checks)
    size = sum(check.file.size for check in checks)
    seconds = time.monotonic() - started
    return Report(fetcher.client.url, len(checks), size, seconds, judge(checks), None), restored


def _with_integrity(report: Report, lines: list[str], txid: int) -> Report:
    if lines == ["ok"]:
        return replace(report, integrity="ok")
    problems = [Problem(f"integrity check: {line}", min_txid=txid, max_txid=txid) for line in lines]
    findings = replace(report.findings, problems=(*report.findings.problems, *problems))
    return replace(report, integrity="failed", findings=findings)

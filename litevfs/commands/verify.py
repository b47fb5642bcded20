"""`litevfs verify`: every file of a replica read and checked, the chain they make, and the database itself."""

from __future__ import annotations

import argparse
import json
import logging
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace

import apsw

from litevfs.commands.options import add_options, add_url, connect, open_fetcher
from litevfs.commands.progress import ProgressBar
from litevfs.commands.text import count
from litevfs.errors import LitevfsError, RestoreError
from litevfs.files.fetch import Fetcher
from litevfs.files.plan import Chain
from litevfs.ltx.names import format_txid
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
from litevfs.units import format_bytes, format_timestamp

logger = logging.getLogger("litevfs.commands.verify")

NAME = "verify"
HELP = "check every file, the chain and the database"
DESCRIPTION = (
    "Read every LTX file of a replica whole and check format, checksums and names; check that the files make the "
    "newest state without a gap; run PRAGMA integrity_check on that state. Exits with 1 when anything is wrong. "
    "A remote replica is read once, if there is room for its database in the folder for temporary files (TMPDIR)."
)
_TAKEN_OPTIONS = frozenset({"cache_size", "open_timeout", "read_timeout"})


@dataclass(frozen=True, slots=True)
class Report:
    """All there is to say."""

    url: str
    files: int
    size: int  # bytes
    seconds: float
    findings: Findings
    integrity: str | None  # "ok", "failed", or None when it was not checked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    parser.add_argument("--json", action="store_true", help="an object; sizes in bytes")
    parser.add_argument(
        "--integrity-check", action=argparse.BooleanOptionalAction, default=True, help="of the newest state [yes]"
    )
    add_options(parser, _TAKEN_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    with open_fetcher(args) as fetcher, ExitStack() as stack:
        # Reading a local file twice costs less than writing it once.
        target = _room(stack) if args.integrity_check and fetcher.is_remote else None
        report, restored = _check_storage(fetcher, target)
        newest = report.findings.newest
        if args.integrity_check and newest:
            on_disk = target if restored == newest else None
            lines = integrity_findings(on_disk) if on_disk else _findings_in_place(args, newest.txid)
            report = _with_integrity(report, lines, newest.txid)
    print(json.dumps(_to_json(report), indent=1) if args.json else _to_text(report))
    return 1 if report.findings.problems else 0


def _room(stack: ExitStack) -> RestoreTarget | None:
    """Where the newest state can be put while it is checked, until the stack is closed."""
    try:
        return stack.enter_context(temporary_target())
    except RestoreError as error:
        logger.info("%s", error)
        return None


def _check_storage(fetcher: Fetcher, target: RestoreTarget | None) -> tuple[Report, Chain | None]:
    """What the files are like; and the state that is in `target` now, if any."""
    started = time.monotonic()
    # Lowest level first: what retention deletes first is read first.
    files = fetcher.list_levels(LEVELS)
    total, done = sum(file.size for file in files), 0
    with ProgressBar("verifying") as bar:

        def report(check: FileCheck) -> None:
            nonlocal done
            done += check.file.size
            bar.update(done, total)

        restored = None
        checks: list[FileCheck] = []
        if target is not None:
            checks, restored = check_newest_state(fetcher, files, target, report)
        checked = {check.file for check in checks}
        checks += check_files(fetcher, [file for file in files if file not in checked], report)
        checks = without_deleted(fetcher, checks)
    size = sum(check.file.size for check in checks)
    seconds = time.monotonic() - started
    return Report(fetcher.client.url, len(checks), size, seconds, judge(checks), None), restored


def _findings_in_place(args: argparse.Namespace, txid: int) -> list[str]:
    """SQLite's check of a state where it is: needs no room, and reads again what the cache cannot hold."""
    try:
        with closing(connect(args, poll_interval="0", txid=format_txid(txid))) as connection:
            return [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
    except (LitevfsError, apsw.Error) as error:
        return [str(error)]


def _with_integrity(report: Report, lines: list[str], txid: int) -> Report:
    if lines == ["ok"]:
        return replace(report, integrity="ok")
    problems = [Problem(f"integrity check: {line}", min_txid=txid, max_txid=txid) for line in lines]
    findings = replace(report.findings, problems=(*report.findings.problems, *problems))
    return replace(report, integrity="failed", findings=findings)


def _to_json(report: Report) -> dict[str, object]:
    findings = report.findings
    newest, header = findings.newest, findings.newest_header
    state = None
    if newest and header:
        state = {
            "txid": format_txid(newest.txid),
            "time": format_timestamp(header.timestamp_ms),
            "page_size": header.page_size,
            "commit": header.commit,
            "files": len(newest.files),
        }
    return {
        "url": report.url,
        "ok": not findings.problems,
        "files": report.files,
        "bytes": report.size,
        "newest": state,
        "integrity_check": report.integrity,
        "problems": [_problem_json(problem) for problem in findings.problems],
        "notes": list(findings.notes),
    }


def _problem_json(problem: Problem) -> dict[str, object]:
    txids = {
        name: None if (txid := getattr(problem, name)) is None else format_txid(txid)
        for name in ("min_txid", "max_txid")
    }
    return asdict(problem) | txids


def _to_text(report: Report) -> str:
    findings = report.findings
    lines = [f"{count(report.files, 'file')}, {format_bytes(report.size)}, read in {report.seconds:.1f} s"]
    newest, header = findings.newest, findings.newest_header
    if newest and header:
        size = f"{count(header.commit, 'page')} of {header.page_size} bytes"
        time_text = format_timestamp(header.timestamp_ms)
        made_of = count(len(newest.files), "file")
        lines.append(f"newest state: TXID {format_txid(newest.txid)}, {time_text}, {size}, made of {made_of}")
    lines.append(f"integrity check: {report.integrity or 'not run'}")
    lines += [f"note: {note}" for note in findings.notes]
    lines += [f"problem: {problem}" for problem in findings.problems]
    lines.append(f"{count(len(findings.problems), 'problem')} found" if findings.problems else "no problems found")
    return "\n".join(lines)

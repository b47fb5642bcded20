"""`litevfs verify`: every file of a replica read and checked, the chain they make, and the database itself."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict
from functools import partial

import apsw

from litevfs.commands.options import add_options, add_url, connect, open_fetcher
from litevfs.commands.progress import ProgressBar
from litevfs.commands.text import count
from litevfs.errors import LitevfsError
from litevfs.ltx.names import format_txid
from litevfs.operations.verify import Problem
from litevfs.operations.whole_check import Report, check_replica
from litevfs.units import format_bytes, format_timestamp

DESCRIPTION = (
    "Read every LTX file of a replica whole and check format, checksums and names; check that the files make the "
    "newest state without a gap; run PRAGMA integrity_check on that state. Exits with 1 when anything is wrong. "
    "A remote replica is read once, if there is room for its database in the folder for temporary files (TMPDIR)."
)
_TAKEN_OPTIONS = frozenset({"cache_size", "open_timeout", "read_timeout"})


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
    in_place = partial(_findings_in_place, args) if args.integrity_check else None
    with open_fetcher(args) as fetcher, ProgressBar("verifying") as bar:
        report = check_replica(fetcher, in_place, bar.update)
    print(json.dumps(_to_json(report), indent=1) if args.json else _to_text(report))
    return 1 if report.findings.problems else 0


def _findings_in_place(args: argparse.Namespace, txid: int) -> list[str]:
    """SQLite's check of a state in place: needs no disk space, and reads pages again that the cache cannot hold."""
    try:
        with closing(connect(args, poll_interval="0", txid=format_txid(txid))) as connection:
            return [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
    except (LitevfsError, apsw.Error) as error:
        return [str(error)]


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

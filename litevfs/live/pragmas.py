"""`PRAGMA litestream_...`: the answer of each. Knows no SQLite; a binding passes name and value.

Names and meanings are those of Litestream's VFS, so that users find what they know; `litestream_status`,
`litestream_poll`, `litestream_wait_txid` and `litestream_warm` are additions.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable

from litevfs.errors import OptionError
from litevfs.live.session import Session
from litevfs.live.status import at_fixed_state
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.units import format_timestamp, parse_duration_s, parse_moment_ms

PREFIX = "litestream_"
DEFAULT_WAIT_S = 10.0
"""How long `PRAGMA litestream_wait_txid` waits by default."""


def answer_pragma(session: Session, name: str, value: str | None) -> str | None:
    """The one value that `PRAGMA name` or `PRAGMA name = value` returns, or None if litevfs does not have that PRAGMA.

    Raises OptionError for a `litestream_` name or a value that makes no sense.
    """
    name = name.lower()
    if not name.startswith(PREFIX):
        return None
    handler = _HANDLERS.get(name.removeprefix(PREFIX))
    if handler is None:
        known = [PREFIX + known for known in _HANDLERS]
        near = difflib.get_close_matches(name, known, n=1)
        raise OptionError(
            f"unknown PRAGMA {name}", hint=f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)
        )
    return handler(session, value)


def _txid(session: Session, value: str | None) -> str:
    _refuse_value("txid", value)
    return format_txid(session.snapshot.txid)


def _lag(session: Session, value: str | None) -> str:
    _refuse_value("lag", value)
    lag_s = session.replica.lag_s()
    return "-1" if lag_s is None else str(int(lag_s))


def _time(session: Session, value: str | None) -> str:
    if value is not None:
        if value.strip().lower() == "latest":
            session.travel(None)
        else:
            moment_ms = parse_moment_ms(value, now_ms=int(time.time() * 1000))
            session.travel(session.replica.view(timestamp_ms=moment_ms))
    return format_timestamp(session.snapshot.timestamp_ms)


def _poll(session: Session, value: str | None) -> str:
    _refuse_value("poll", value)
    session.replica.refresh_now()
    return format_txid(session.snapshot.txid)


def _wait_txid(session: Session, value: str | None) -> str:
    words = (value or "").split()
    if len(words) not in {1, 2}:
        raise OptionError("PRAGMA litestream_wait_txid needs a TXID", hint="for example = '00ff', or = '00ff 5s'")
    timeout_s = parse_duration_s(words[1]) if len(words) == 2 else DEFAULT_WAIT_S
    txid = parse_txid(words[0])
    if session.fixed is None:
        return format_txid(session.replica.wait_for(txid, timeout_s).txid)
    if session.fixed.txid < txid:
        raise OptionError(
            f"this connection sees the fixed state at TXID {format_txid(session.fixed.txid)}, and will never see "
            f"{format_txid(txid)}",
            hint="PRAGMA litestream_time = 'latest' returns from time travel; or open a connection without txid and "
            "timestamp",
        )
    return format_txid(session.fixed.txid)


def _status(session: Session, value: str | None) -> str:
    _refuse_value("status", value)
    status = session.replica.status()
    return (at_fixed_state(status, session.fixed) if session.fixed else status).to_json()


def _hydration_progress(session: Session, value: str | None) -> str:
    _refuse_value("hydration_progress", value)
    hydration = session.replica.pages.hydration
    return f"{hydration.progress if hydration else 0.0:.1f}"


def _hydration_file(session: Session, value: str | None) -> str:
    _refuse_value("hydration_file", value)
    hydration = session.replica.pages.hydration
    return hydration.path if hydration else ""


def _warm(session: Session, value: str | None) -> str:
    _refuse_value("warm", value)
    done, count = session.warming.wait() if session.warming else (0, 0)
    return f"{done} of {count}"


def _refuse_value(name: str, value: str | None) -> None:
    if value is not None:
        raise OptionError(f"PRAGMA {PREFIX}{name} takes no value")


_HANDLERS: dict[str, Callable[[Session, str | None], str]] = {
    "txid": _txid,
    "lag": _lag,
    "time": _time,
    "poll": _poll,
    "wait_txid": _wait_txid,
    "status": _status,
    "warm": _warm,
    "hydration_progress": _hydration_progress,
    "hydration_file": _hydration_file,
}

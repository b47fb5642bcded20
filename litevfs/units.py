"""Durations, sizes, times and truth values: from text to numbers, and back."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

from litevfs.errors import OptionError, shown

_DURATION_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS_BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h|d)")
MAX_DURATION_S = 100 * 365 * 86400.0
"""The system's clocks and locks accept no longer waits."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_TIMESTAMP_MS, _MAX_TIMESTAMP_MS = -62_135_596_800_000, 253_402_300_799_999
"""Years 1 to 9999."""
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)")
_RELATIVE = re.compile(r"(\d+(?:\.\d*)?)\s*([a-zµ]+)\s+ago|-\s*(\d+(?:\.\d*)?)\s*([a-zµ]+)", re.IGNORECASE)
_MAX_AGO_S = 1e15
"""Earlier than any stored file."""
_LONG_UNITS = {
    "second": "s",
    "sec": "s",
    "minute": "m",
    "min": "m",
    "hour": "h",
    "hr": "h",
    "day": "d",
}


def parse_duration_s(value: object, *, most_s: float = MAX_DURATION_S) -> float:
    """Seconds, from a number of seconds or text such as `1s`, `250ms`, `1h30m`, `0`. Raises OptionError.

    More than `most_s` is refused, as a thread has to wait that long.
    """
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if 0 <= value <= most_s else math.nan  # a large int is no float
    elif isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
            seconds = float(text)
        elif text and "".join(parts := _DURATION.findall(text)) == text:
            seconds = sum(_one_duration_s(part) for part in parts)
    if not 0 <= seconds <= most_s:  # NaN fails this
        raise OptionError(
            f"not a duration: {shown(value)}",
            hint="write for example 1s, 250ms, 1h30m, or seconds as a number; a hundred years are the most",
        )
    return seconds


def _one_duration_s(text: str) -> float:
    number = text.rstrip("nuµmshd")
    return float(number) * _DURATION_UNITS_S[text[len(number) :]]


def parse_size_bytes(value: object) -> int:
    """Bytes, from a number of bytes or text such as `10MB` (10^6), `64KiB` (2^10), `1G`. Raises OptionError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = _SIZE_UNITS_BYTES.get(match[2].upper())
        if unit is not None and (size := float(match[1]) * unit) < math.inf:
            return round(size)
    raise OptionError(f"not a size: {shown(value)}", hint="write for example 10MB, 64KiB, or bytes as a number")


def parse_bool(value: object) -> bool:
    """True or False, from a bool or the words SQLite and Go accept (true/false, yes/no, on/off, 1/0)."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in {"1", "t", "true", "yes", "on"}:
        return True
    if word in {"0", "f", "false", "no", "off"}:
        return False
    raise OptionError(f"not a truth value: {shown(value)}", hint="write true or false")


def parse_timestamp_ms(value: object) -> int:
    """Milliseconds since the Unix epoch, from an aware or UTC datetime or RFC 3339 text. Raises OptionError."""
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip().upper())  # RFC 3339 has t and z for T and Z
        except ValueError:
            moment = None
    if not isinstance(moment, datetime):
        hint = "write RFC 3339, for example 2026-01-31T12:00:00Z"
        if isinstance(value, str) and "ago" in value:
            hint += "; a time that counts from now is for PRAGMA litestream_time and the commands"
        raise OptionError(f"not a time: {shown(value)}", hint=hint)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def format_timestamp(timestamp_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds; the nearest time that has this form (an LTX header may hold any number)."""
    moment = _EPOCH + timedelta(milliseconds=min(max(timestamp_ms, _MIN_TIMESTAMP_MS), _MAX_TIMESTAMP_MS))
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def parse_moment_ms(text: str, now_ms: int) -> int:
    """Milliseconds since the Unix epoch, from RFC 3339 or `5 minutes ago`, `-5m`, `yesterday`, `now`.

    Raises OptionError for anything else.
    """
    words = text.strip().lower()
    if words == "now":
        return now_ms
    if words == "yesterday":
        return now_ms - 86_400_000
    match = _RELATIVE.fullmatch(words)
    try:
        if match is None:
            return parse_timestamp_ms(text)
        number, unit = match[1] or match[3], match[2] or match[4]
        short = _LONG_UNITS.get(unit.removesuffix("s"), unit)
        if unit in {"week", "weeks"}:
            number, short = str(float(number) * 7), "d"
        return now_ms - round(parse_duration_s(f"{number}{short}", most_s=_MAX_AGO_S) * 1000)
    except OptionError as error:
        raise OptionError(
            f"not a time: {shown(text)}", hint="write RFC 3339 (2026-01-31T12:00:00Z), or for example '5 minutes ago'"
        ) from error


def format_bytes(size: float) -> str:
    """Bytes in powers of 1000: `999 B`, `1.5 MB`."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"

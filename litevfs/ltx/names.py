"""LTX file names: `<min_txid>-<max_txid>.ltx`, both 16 lower-case hex digits. Owns nothing else.

Source: superfly/ltx, `ltx.go` (FormatFilename, ParseFilename); Litestream 0.5 writes no other names.
"""

from __future__ import annotations

import re

from litevfs.errors import OptionError, shown

MAX_TXID = 2**64 - 1
"""TXIDs are unsigned 64-bit numbers from 1 on."""

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx", re.ASCII)
_TXID = re.compile(r"[0-9a-fA-F]{1,16}", re.ASCII)


def format_txid(txid: int) -> str:
    """A TXID as users and file names see it: 16 lower-case hex digits."""
    return f"{txid:016x}"


def parse_txid(value: object) -> int:
    """The TXID given as a number, or written as 1 to 16 hex digits, case ignored.

    Raises OptionError for anything else, zero included (no state has TXID 0).
    """
    if isinstance(value, str):
        txid = int(value, 16) if _TXID.fullmatch(value) else 0
    else:
        txid = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if not 1 <= txid <= MAX_TXID:
        raise OptionError(
            f"not a TXID: {shown(value)}",
            hint="a TXID is a number from 1 to 2^64-1, or 1 to 16 hex digits, for example 00000000000000ff",
        )
    return txid


def format_file_name(min_txid: int, max_txid: int) -> str:
    """The name of the file that holds TXIDs `min_txid` to `max_txid`, both included."""
    return f"{min_txid:016x}-{max_txid:016x}.ltx"


def parse_file_name(name: str) -> tuple[int, int] | None:
    """(min_txid, max_txid) of an LTX file name, or None for any other name (readers skip those)."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    min_txid, max_txid = int(match[1], 16), int(match[2], 16)
    if not 1 <= min_txid <= max_txid:
        return None
    return min_txid, max_txid

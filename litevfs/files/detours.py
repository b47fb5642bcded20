"""The way around files that are damaged or gone: a job plans again without them, while the other files suffice.

Owns which files of one job are unusable, and when there is no way around them. Knows no job: the follower, restore and
compaction each plan their own chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from litevfs.errors import LitevfsError, LTXFormatError, StorageNotFoundError
from litevfs.files.plan import reachable_txids
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.names import format_txid

MAX_DETOURS = 8
"""How many unusable files one refresh goes around: each costs it another fetch."""


def is_unusable(error: LitevfsError) -> bool:
    """Whether the error says that a file is damaged or gone, not that the storage fails."""
    return isinstance(error, LTXFormatError | StorageNotFoundError)


class Detours:
    """The unusable files that one job has met. It plans without them, from this listing and from later ones."""

    def __init__(self, most: float = math.inf) -> None:
        """At most so many files are left out; the error of the next one is final."""
        self._left = most
        self._places: set[tuple[int | None, int | None, int | None]] = set()

    def __bool__(self) -> bool:
        return bool(self._places)

    def usable(self, files: Sequence[LTXFileInfo]) -> Sequence[LTXFileInfo]:
        """The files but for those left out."""
        if not self._places:
            return files
        return [file for file in files if file.place not in self._places]

    def leave_out(self, error: LitevfsError, files: Sequence[LTXFileInfo], txid: int) -> None:
        """Leave out the file of the listing `files` that `error` names; the job wants the state `txid`.

        Raises `error` if it names none of them, if that file is neither damaged nor gone, if it is one too many, or if
        the others do not lead to that state; then its hint names the newest state before it that they do lead to.
        """
        usable = self.usable(files)
        place = (error.level, error.min_txid, error.max_txid)
        others = [file for file in usable if file.place != place]
        if not is_unusable(error) or len(others) == len(usable) or self._left < 1:
            raise error
        reachable = reachable_txids(others)
        if txid not in reachable:
            _name_earlier_state(error, max((other for other in reachable if other < txid), default=None))
            raise error
        self._left -= 1
        self._places.add(place)


def _name_earlier_state(error: LitevfsError, txid: int | None) -> None:
    """Add to the error the earlier state that can be opened."""
    if txid is not None:
        advice = f"the state before can be opened with txid={format_txid(txid)}"
        error.hint = f"{error.hint}; {advice}" if error.hint else advice

"""A reader of a followed file, by plain `sqlite3`: what it sees, as JSON on standard output. Run by `follow.py`.

    python _follow_reader.py FILE CONTROL keeps|opens ro|rw

It keeps one connection, or opens one for each look. Each look is one read transaction: a sum that is 0 in every state,
and as many notes as the highest number of one. CONTROL is a file that says quiet, kills or stop.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

LOOK = """
SELECT (SELECT sum(cents) FROM account), count(*), max(id), (SELECT at FROM note ORDER BY id DESC LIMIT 1) FROM note
"""
LOOKS_A_CHECK = 100
PAUSE_S = 0.01
BUSY_TIMEOUT_S = 20


class Reader:
    """Counts what it sees."""

    def __init__(self, path: str, *, keeps: bool, mode: str) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.lags: list[float] = []
        self.newest = 0
        self._uri = f"file:{path}?mode={mode}"
        self._keeps = keeps
        self._connection: sqlite3.Connection | None = None

    def look(self, *, is_quiet: bool) -> None:
        """One transaction, and now and then a check of the whole file."""
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self._uri, uri=True, timeout=BUSY_TIMEOUT_S)
            total, notes, newest, at = self._connection.execute(LOOK).fetchone()
            self.counts["looks"] += 1
            self._note("torn", total != 0 or notes != newest, is_quiet)
            self._note("back", newest < self.newest, is_quiet)
            if newest > self.newest:
                self.counts["states"] += 1
                if is_quiet and self.newest:  # the state of the first look is as old as the replica
                    self.lags.append(time.time() - at)
                self.newest = newest
            if self.counts["looks"] % LOOKS_A_CHECK == 0:
                self.counts["checks"] += 1
                is_corrupt = self._connection.execute("PRAGMA integrity_check").fetchone() != ("ok",)
                self._note("corrupt", is_corrupt, is_quiet)
        except sqlite3.DatabaseError as error:
            self.errors[str(error)] += 1
            self._close()
        if not self._keeps:
            self._close()

    def _note(self, what: str, is_so: bool, is_quiet: bool) -> None:
        self.counts[what] += is_so
        if is_quiet:
            self.counts[f"{what} quiet"] += is_so

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def answer(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**self.counts, "errors": dict(self.errors), "lags": self.lags, "newest": self.newest}


def main() -> None:
    path, control, how, mode = sys.argv[1:]
    reader = Reader(path, keeps=how == "keeps", mode=mode)
    while (phase := Path(control).read_text()) != "stop":
        reader.look(is_quiet=phase == "quiet")
        time.sleep(PAUSE_S)
    print(json.dumps(reader.answer()))


if __name__ == "__main__":
    main()

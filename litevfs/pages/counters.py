"""Where pages came from, counted. Reads none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PageCounters:
    """Where the pages that SQLite asked for came from."""

    hits: int = 0  # less than 0 while pages decoded along with others are not read yet
    misses: int = 0
    hydrated: int = 0
    reread: int = 0
    relocated: int = 0

    def decoded_along(self, count: int) -> None:
        """Count pages decoded with another one as misses: their first read, which is about to come, is no hit."""
        self.misses += count
        self.hits -= count

"""The situations in which Litestream's own VFS is known or suspected to err, and three of a conformance suite.

Each one makes real LTX files, drives a reader of either kind through the same steps, and says what came out. Which kind
it is matters to none of them, but for options that only litevfs has.
"""

from __future__ import annotations

from tests.peer import costs, states
from tests.peer.situation import Situation, entered

__all__ = ["SITUATIONS", "Situation", "costs", "states"]

SITUATIONS: list[Situation] = sorted(entered, key=lambda situation: (situation.key[0].isupper(), situation.key))
"""In the order of the table: by letter, then those of the test plan."""

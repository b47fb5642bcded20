"""What both readers did in each situation: kept as JSON, shown as a table in docs/comparison.md.

python -m pytest tests/peer --peer-report tests/peer/record.json
python -m tests.peer.record            # put the table of record.json into docs/comparison.md
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.peer.situations import SITUATIONS
from tests.peer.world import Outcome

STORED = Path(__file__).with_name("record.json")
PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"
_BLOCK = re.compile(r"(?<=<!-- comparison -->\n).*?(?=<!-- end of comparison -->)", re.DOTALL)


@dataclass(slots=True)
class Record:
    """One run."""

    date: str  # ISO 8601
    machine: str
    peer_version: str = ""
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)  # by situation, then "litevfs" or "peer"

    @classmethod
    def begin(cls) -> Record:
        """An empty one, of today."""
        return cls(datetime.now(UTC).date().isoformat(), f"{platform.system()} {platform.machine()}")

    @property
    def is_complete(self) -> bool:
        """Whether both readers were in every situation."""
        return all(len(self.outcomes.get(situation.key, {})) == 2 for situation in SITUATIONS)

    def add(self, key: str, kind: str, outcome: Outcome) -> None:
        """What one reader did."""
        self.outcomes.setdefault(key, {})[kind] = outcome

    def write(self, path: Path) -> None:
        """Store it."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path = STORED) -> Record:
        """A stored one."""
        content = json.loads(path.read_text())
        outcomes = {
            key: {kind: Outcome(**outcome) for kind, outcome in both.items()}
            for key, both in content.pop("outcomes").items()
        }
        return cls(**content, outcomes=outcomes)


def table(record: Record) -> str:
    """The comparison in Markdown, for docs/comparison.md."""
    lines = [
        f"Measured on {record.date} with litestream-vfs {record.peer_version} from PyPI, loaded into APSW; both readers"
        f" poll every 100 ms.",
        "",
        "| situation | Litestream's VFS | litevfs |",
        "|---|---|---|",
    ]
    for situation in SITUATIONS:
        both = record.outcomes[situation.key]
        lines.append(f"| {situation.title} | {_cell(both['peer'])} | {_cell(both['litevfs'])} |")
    return "\n".join([*lines, ""])


def _cell(outcome: Outcome) -> str:
    words = outcome.answer.replace("|", "\\|")
    return words if outcome else f"**{outcome.verdict}**: {words}"


def shown(readme: str) -> str:
    """The table as docs/comparison.md has it; empty if it has none."""
    match = _BLOCK.search(readme)
    return match[0] if match else ""


def main() -> None:
    """Put the table of the stored record into docs/comparison.md."""
    PAGE.write_text(_BLOCK.sub(lambda _: table(Record.read()), PAGE.read_text()))


if __name__ == "__main__":
    main()

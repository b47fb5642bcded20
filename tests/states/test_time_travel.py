"""Time travel with headers that are damaged on their way, or in storage: the right state, or an error."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from litevfs.concurrency.retry import LookAgain
from litevfs.errors import LTXFormatError
from litevfs.files.fetch import MAX_READINGS, WHOLE_FILE_BYTES
from litevfs.live.replica import Replica
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.operations.restore import restore
from litevfs.options import Options
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient

TIMESTAMP = slice(32, 40)
"""Where a header has its time."""


@dataclass
class Damage:
    """Flips one bit in the time of a file, in each of the first `times` answers that show it."""

    txid: int
    bit: int
    times: int = 1
    hits: list[int] = field(default_factory=list)  # sizes of the answers that were damaged

    def __call__(self, file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if file.max_txid != self.txid or offset or len(self.hits) == self.times or not data:
            return data
        self.hits.append(len(data))
        (ms,) = struct.unpack(">Q", data[TIMESTAMP])
        return data[: TIMESTAMP.start] + struct.pack(">Q", ms ^ 1 << self.bit) + data[TIMESTAMP.stop :]


@dataclass
class World:
    primary: Primary
    script: Script
    replica: Replica


@pytest.fixture(scope="module", params=["small files", "large files"])
def history(request) -> Iterator[tuple[Primary, Script]]:
    """Eight transactions, a second apart."""
    count = {"small files": 1, "large files": 300}[request.param]
    with Script() as script, Primary(script.writer, page_size=4096) as primary:
        primary.commit("CREATE TABLE t(x, b)")
        for n in range(7):
            primary.commit(
                "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
                "REPLACE INTO t(rowid, x, b) SELECT i, ?, randomblob(4000) FROM n",
                (count, n),
            )
        assert (script.writer.list_files(0)[-1].size > WHOLE_FILE_BYTES) is (count > 1)
        yield primary, script


@pytest.fixture
def world(history) -> Iterator[World]:
    """A replica of that history; what a test has compacted goes at its end."""
    primary, script = history
    replica = Replica(Options(replica_url=script.url, read_timeout_s=0.5, cache_size_bytes=0))
    yield World(primary, script, replica)
    replica.close()
    script.on_read = None
    primary.delete(1)


@pytest.mark.parametrize("bit", [16, *(pytest.param(bit, marks=pytest.mark.soak) for bit in (11, 62))])
@pytest.mark.parametrize("wanted", [1, 4, 8])
@pytest.mark.parametrize("damaged", range(1, 9))
def test_a_header_that_is_damaged_once_chooses_no_other_state(world, damaged, wanted, bit, tmp_path: Path):
    at_ms = world.primary.timestamp_ms(wanted) + 500
    world.script.on_read = Damage(damaged, bit)
    assert world.replica.view(timestamp_ms=at_ms).txid == wanted
    if bit == 16 and wanted == 4:
        world.script.on_read = Damage(damaged, bit)
        moment = datetime.fromtimestamp(at_ms / 1000, UTC)
        result = restore(ScriptedClient(world.script), tmp_path / "a.db", timestamp=moment, read_timeout=0.5)
        assert result.txid == wanted
        assert (tmp_path / "a.db").read_bytes() == world.primary.images[wanted]


@pytest.mark.parametrize("damaged", [4, 5])
@pytest.mark.parametrize("history", ["small files"], indirect=True)
def test_a_header_that_storage_has_damaged_chooses_no_state_unless_another_file_tells(world, damaged):
    """A large file in storage cannot be told from a sound one without reading it whole."""
    at_ms = world.primary.timestamp_ms(4) + 500
    world.script.on_read = Damage(damaged, 16, times=1000)
    with pytest.raises(LTXFormatError, match="decides which state is of that time"):
        world.replica.view(timestamp_ms=at_ms)
    sound = world.primary.compact(1, 1, damaged)
    damage = world.script.on_read
    world.script.on_read = lambda file, offset, data: data if file.level == sound.level else damage(file, offset, data)
    assert world.replica.view(timestamp_ms=at_ms).txid == 4


@pytest.mark.parametrize("history", ["large files"], indirect=True)
def test_a_time_that_is_another_one_each_time_is_believed_never(world):
    counts = iter(range(1000))

    def another(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if offset or file.max_txid != 8:
            return data
        return data[: TIMESTAMP.start] + struct.pack(">Q", next(counts)) + data[TIMESTAMP.stop :]

    world.script.on_read = another
    with pytest.raises(LTXFormatError, match="brings another time"):
        world.replica.view(timestamp_ms=world.primary.timestamp_ms(8))
    assert next(counts) <= LookAgain.attempts * (1 + MAX_READINGS)


def test_what_decides_costs_two_requests_more_than_the_search(world):
    world.script.clear()
    world.replica.view(timestamp_ms=world.primary.timestamp_ms(4) + 500)
    large = world.script.writer.list_files(0)[3].size > WHOLE_FILE_BYTES
    assert len(world.script.reads) <= 4 + 2 + (8 if large else 4)  # of each large file its two ends

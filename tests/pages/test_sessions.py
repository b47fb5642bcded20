"""Bytes that sessions of queries read: on one connection not much more than the same queries on fresh connections.

Over HTTP, from an S3 server behind a proxy that counts. Rows are compared with SQLite's own answers on the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import litevfs
from litevfs.files.fetch import Fetcher
from litevfs.files.governor import Governor
from litevfs.files.line import Line
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.ltx import Header, format_file_name
from litevfs.ltx.encoder import encode_file
from litevfs.options import Options, format_timestamp
from litevfs.pages.btree import LEAF_INDEX, LEAF_TABLE, parse_interior
from litevfs.pages.source import PageSource
from litevfs.testing.s3_proxy import HTTPProxy, running_s3_proxy
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient
from tests.support import wait_until

T = TypeVar("T")

PAGE_SIZE = 4096
ROWS, SMALL_ROWS, GROUPS = 24_000, 6_000, 50
FREE_BYTES = 8_000_000
ALLOWED = 2.0
BUCKET, PATH = "sessions", "app"

PAIR = ("SELECT * FROM t WHERE n BETWEEN 12000 AND 12050", "SELECT count(*) FROM t")
"""Look-ups through an index, and then a scan of that index, which must not read the table."""

_TEMPLATES = (
    "SELECT * FROM t WHERE id = {a}",
    "SELECT * FROM t WHERE n = {a}",
    "SELECT * FROM t WHERE n BETWEEN {a} AND {a} + 60",
    "SELECT sum(length(body)) FROM t WHERE id BETWEEN {a} AND {a} + 3000",
    "SELECT count(*) FROM t",
    "SELECT count(*), max(x) FROM u",
    "SELECT sum(length(body)) FROM t",
    "SELECT id, n FROM t WHERE g = {a} % 50 ORDER BY n DESC LIMIT 10",
    "SELECT id, n FROM t ORDER BY n DESC LIMIT 20",
    "SELECT g, count(*) FROM t GROUP BY g",
    "SELECT u.x, t.n FROM u JOIN t ON t.id = u.t_id WHERE u.id BETWEEN {a} % 5000 AND {a} % 5000 + 40",
    "SELECT count(*) FROM u JOIN t ON t.n = u.t_id WHERE u.id < 100",
    "SELECT u.x FROM t JOIN u ON u.t_id = t.id WHERE t.n BETWEEN {a} AND {a} + 30",
)
_PLACES = (1000, 12_000, 20_111)


def _make_database(path: Path) -> None:
    random = Random(1)
    numbers = list(range(ROWS))
    random.shuffle(numbers)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, g INTEGER, body BLOB)")
        connection.execute("CREATE TABLE u (id INTEGER PRIMARY KEY, t_id INTEGER, x TEXT)")
        with connection:
            connection.executemany(
                "INSERT INTO t VALUES (?, ?, ?, ?)",
                ((i, numbers[i], random.randrange(GROUPS), random.randbytes(600)) for i in range(ROWS)),
            )
            connection.executemany(
                "INSERT INTO u VALUES (?, ?, ?)",
                ((i, random.randrange(ROWS), random.randbytes(20).hex()) for i in range(SMALL_ROWS)),
            )
            connection.execute("CREATE INDEX t_n ON t (n); CREATE INDEX t_g ON t (g); CREATE INDEX u_t ON u (t_id)")


def _snapshot_file(database: bytes) -> bytes:
    commit = len(database) // PAGE_SIZE
    pages = ((i + 1, database[i * PAGE_SIZE : (i + 1) * PAGE_SIZE]) for i in range(commit))
    return encode_file(Header(page_size=PAGE_SIZE, commit=commit, min_txid=1, max_txid=1, timestamp_ms=1), pages)


@dataclass
class World:
    """A replica behind a proxy, the database itself, and what queries read on fresh connections."""

    url: str
    proxy: HTTPProxy
    database: Path
    file_bytes: int
    fresh: dict[str, int] = field(default_factory=dict)
    answers: dict[str, list[tuple[object, ...]]] = field(default_factory=dict)

    def read(self, queries: Sequence[str]) -> list[int]:
        """Bytes that each of the queries asks for, all on one connection; what opening it reads is not counted."""
        with closing(litevfs.connect(self.url, poll_interval=0)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").get  # noqa: B018
            (replica,) = (shared.replica for shared in registry.shared.values() if shared.replica.url in self.url)
            read = []
            for query in queries:
                self.proxy.clear()
                assert connection.execute(query).fetchall() == self.answer(query), query
                wait_until(lambda: not replica.pages.blocks.under_way.requests, "what is under way")
                gets = [request for request in self.proxy.requests if request.method == "GET"]
                read.append(sum(_range_bytes(request.range) for request in gets))
        return read

    def read_alone(self, query: str) -> int:
        """Bytes that a query asks for on a connection of its own."""
        if query not in self.fresh:
            (self.fresh[query],) = self.read([query])
        return self.fresh[query]

    def answer(self, query: str) -> list[tuple[object, ...]]:
        """What SQLite itself says, on the file."""
        if query not in self.answers:
            with closing(apsw.Connection(str(self.database), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
                self.answers[query] = connection.execute(query).fetchall()
        return self.answers[query]


def _range_bytes(header: str | None) -> int:
    first, _, last = (header or "").removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1 if first else 0


@pytest.fixture(scope="module")
def world(s3_server, tmp_path_factory) -> Iterator[World]:
    database = tmp_path_factory.mktemp("sessions") / "app.db"
    _make_database(database)
    content = _snapshot_file(database.read_bytes())
    client = s3_server.boto3_client()
    client.create_bucket(Bucket=BUCKET)
    client.put_object(
        Bucket=BUCKET,
        Key=f"{PATH}/0009/{format_file_name(1, 1)}",
        Body=content,
        Metadata={"litestream-timestamp": format_timestamp(1)},
    )
    client.close()
    with pytest.MonkeyPatch.context() as patch, running_s3_proxy(s3_server.endpoint) as proxy:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        yield World(s3_server.url(BUCKET, PATH, endpoint=proxy.endpoint), proxy, database, len(content))


def _session(seed: int) -> list[str]:
    random = Random(seed)
    return [random.choice(_TEMPLATES).format(a=random.choice(_PLACES)) for _ in range(random.randint(3, 8))]


@pytest.mark.slow
@pytest.mark.s3
def test_a_scan_of_an_index_after_look_ups_through_it_does_not_read_the_table(world):
    alone = world.read_alone(PAIR[1])
    assert world.read(PAIR)[1] <= 1.1 * alone + (1 << 16)
    assert alone < world.file_bytes / 20


def _check_sessions(world: World, seeds: range) -> None:
    for seed in seeds:
        queries = _session(seed)
        read, alone = sum(world.read(queries)), sum(map(world.read_alone, queries))
        assert read <= ALLOWED * alone + FREE_BYTES, (seed, read, alone, queries)


@pytest.mark.slow
@pytest.mark.s3
def test_sessions_read_at_most_twice_what_their_queries_read_alone(world):
    _check_sessions(world, range(2))


@pytest.mark.s3
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_sessions_read_at_most_twice_what_their_queries_read_alone(world):
    _check_sessions(world, range(200))


# --- the governor's bound ---------------------------------------------------------------------------------------------

FEW_FREE_BYTES = 60_000
BLOCK_SIZE = 1 << 14


@pytest.fixture(scope="module")
def trees() -> Iterator[tuple[Script, Primary]]:
    """A table of scattered keys with an index by key, and rows that overflow their pages."""
    with Script(block_size=BLOCK_SIZE) as script, Primary(script.writer) as primary:
        primary.commit(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, n, s TEXT); CREATE TABLE o (id INTEGER PRIMARY KEY, b BLOB);"
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 6000) "
            "INSERT INTO t SELECT i, i * 7919 % 6000, hex(randomblob(60)) FROM c;"
            "CREATE INDEX t_n ON t (n);"
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 8) "
            "INSERT INTO o SELECT i, randomblob(60000) FROM c"
        )
        yield script, primary


_reads = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 10**6), st.integers(1, 60), st.booleans()), min_size=1, max_size=30
)


@pytest.mark.slow
@settings(max_examples=40)
@given(_reads, st.sampled_from([0, 100_000, 10_000_000]))
def test_what_is_read_ahead_and_not_used_stays_bounded_over_any_reads_of_pages(trees, steps, spill_size_bytes):
    """Runs of pages up and down, strides and jumps, with and without a new transaction before them."""
    script, primary = trees
    replica = Replica(Options(replica_url=script.url, poll_interval_s=0))
    replica.refresh()
    snapshot, governor = replica.snapshot, Governor(FEW_FREE_BYTES)
    fetcher = Fetcher(ScriptedClient(script), read_timeout_s=5)
    pages = PageSource(
        fetcher,
        lambda *_: pytest.fail("looked"),
        cache_size_bytes=200_000,
        prefetch=True,
        governor=governor,
        spill_size_bytes=spill_size_bytes,
    )
    reads = pages.reads()
    before = len(script.reads)
    try:
        for stride, start, count, begins in steps:
            if begins:
                reads.begin()
            for i in range(count):
                pgno = (start + i * (stride - 1)) % snapshot.commit + 1
                assert reads.read(snapshot, pgno) == primary.page(pgno)
                assert governor.unused <= FEW_FREE_BYTES + governor.used + governor.needed
        wait_until(lambda: not pages.blocks.under_way.requests, "what is under way")
        assert sum(size for _, _, size in script.reads[before:]) == governor.ahead + governor.needed
        assert reads._watcher is not None
    finally:
        pages.close()
        fetcher.close()
        replica.close()


# --- scans that hand pages along --------------------------------------------------------------------------------------


def _roots(primary: Primary) -> tuple[int, int]:
    """The root pages of the table `t` and of its index."""
    ((table,), (index,)) = primary.rows("SELECT rootpage FROM sqlite_schema WHERE tbl_name = 't' ORDER BY name")
    return table, index


@pytest.mark.parametrize(
    ("cache_size_bytes", "share", "is_expected"),
    [(400_000, 0.8, False), (8_000_000, 0.2, False), (400_000, 0.8, True)],
)
def test_a_scan_is_handed_leaves_that_change_no_plan_along_and_reads_no_more(
    trees, cache_size_bytes, share, is_expected
):
    """Those of an index, too, where it is known that nothing is looked up from them."""
    script, primary = trees
    table, index = _roots(primary)
    order = [*_in_order(primary, table), *_in_order(primary, index)]
    read, kinds = [], set()
    for is_handed in (False, True):
        replica = Replica(Options(replica_url=script.url, poll_interval_s=0))
        replica.refresh()
        snapshot, governor = replica.snapshot, Governor()
        fetcher = Fetcher(ScriptedClient(script), read_timeout_s=5)
        fetcher.line = fetcher.gets.line = UnmeasuredLine()
        pages = PageSource(
            fetcher,
            lambda *_: pytest.fail("looked"),
            cache_size_bytes=cache_size_bytes,
            prefetch=True,
            governor=governor,
        )
        reads, calls = pages.reads(), 0
        along: dict[int, bytes] | None = {} if is_handed else None
        reads.begin()
        if is_expected:
            reads.expect_scans(snapshot, [table, index], 1)
        for pgno in order:
            page = along.get((pgno - 1) * snapshot.page_size) if along else None
            if page is None:
                calls += 1
                wait_until(lambda blocks=pages.blocks: not blocks.under_way.requests, "what is under way")
                page = reads.read(snapshot, pgno, along)
            assert page == primary.page(pgno)
            kinds |= {handed[0] for handed in (along or {}).values()}
        wait_until(lambda blocks=pages.blocks: not blocks.under_way.requests, "what is under way")
        read.append(governor.ahead + governor.needed)
        pages.close()
        fetcher.close()
        replica.close()
    assert kinds == ({LEAF_TABLE, LEAF_INDEX} if is_expected else {LEAF_TABLE})
    assert calls < share * len(order)
    assert read[1] <= read[0] + BLOCK_SIZE


# --- scans of what is partly in memory --------------------------------------------------------------------------------


class UnmeasuredLine(Line):
    """What a line is taken for before anything was measured, so that plans do not depend on this machine's speed."""

    def carry(self, size: int, request: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """Make the request."""
        return request()


def _in_order(primary: Primary, pgno: int) -> Iterator[int]:
    """The pages of a B-tree as a scan reads them."""
    yield pgno
    if interior := parse_interior(pgno, primary.page(pgno)):
        for child in interior.children:
            yield from _in_order(primary, child)


@pytest.mark.parametrize("cache_size_bytes", [400_000, 800_000])
def test_a_second_scan_waits_for_no_more_than_the_first_although_the_caches_hold_parts_of_it(trees, cache_size_bytes):
    script, primary = trees
    replica = Replica(Options(replica_url=script.url, poll_interval_s=0))
    replica.refresh()
    governor = Governor()
    fetcher = Fetcher(ScriptedClient(script), read_timeout_s=5)
    fetcher.line = fetcher.gets.line = UnmeasuredLine()
    pages = PageSource(
        fetcher, lambda *_: pytest.fail("looked"), cache_size_bytes=cache_size_bytes, prefetch=True, governor=governor
    )
    table, index = _roots(primary)
    scanned = list(_in_order(primary, table))
    reads, needed = pages.reads(), []
    try:
        for pgnos in (scanned, scanned[: len(scanned) // 3], list(_in_order(primary, index)), scanned):
            reads.begin()
            before = governor.needed
            for pgno in pgnos:
                # needed is what was not planned
                wait_until(lambda: not pages.blocks.under_way.requests, "what is under way")
                assert reads.read(replica.snapshot, pgno) == primary.page(pgno)
            needed.append(governor.needed - before)
    finally:
        pages.close()
        fetcher.close()
        replica.close()
    assert needed[-1] <= needed[0]

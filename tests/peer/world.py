"""What a situation has at hand: a primary, its storage, a reader of either kind, and judging what the reader answers.

The oracle is the primary: plain SQLite on the image of each state. Requests are counted by a proxy before the storage.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs

from litevfs.files.fetch import WHOLE_FILE_BYTES
from litevfs.replica_clients.base import ReplicaClient
from litevfs.testing.fixtures import TEST_BUCKET
from litevfs.testing.s3_proxy import HTTPProxy, RecordedRequest
from tests.peer.adapters import Adapter, Kind, ReaderDied, ReaderError, ReaderHangs, Readers
from tests.primary import Primary
from tests.support import wait_until

Verdict = Literal["right", "wrong", "error", "hang", "costly"]
"""Right rows (at the right cost, where that is the point) · wrong rows · an error · no answer · too many requests."""

INTERVAL_S = 0.1
"""Poll interval of every reader here."""
CATCH_UP_S = {"peer": 3.0, "litevfs": 15.0}
"""How long a reader gets for a transaction: for the peer, which may never see it, thirty polls."""
ALL = "SELECT id, v, pad FROM t ORDER BY id"
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reader made of a situation."""

    verdict: Verdict
    answer: str  # one line, without anything that is different at each run

    def __bool__(self) -> bool:
        return self.verdict == "right"


class World:
    """One replica and its reader. The storage is a folder, or S3 behind `proxy`."""

    def __init__(
        self,
        readers: Readers,
        kind: Kind,
        client: ReplicaClient,
        url: str,
        environment: Mapping[str, str],
        proxy: HTTPProxy | None,
        s3_client: Any,
        **primary: Any,
    ) -> None:
        self._readers = readers
        self.kind = kind
        self.client = client
        self.url = url
        self._environment = environment
        self._proxy = proxy
        self._s3_client = s3_client
        self._stack = ExitStack()
        self.primary = self.new_primary(**primary)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def new_primary(self, **options: Any) -> Primary:
        """Another database that writes to the same place."""
        return self._stack.enter_context(Primary(self.client, **options))

    def create(self, rows: int = 200) -> int:
        """TXID 1: a table over some pages, and one that fits a page and serves to make transactions."""
        return self.primary.commit(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, pad TEXT); CREATE TABLE marker (x); "
            + NUMBERS.format(rows)
            + "INSERT INTO t SELECT i, 0, printf('%0100d', i) FROM n"
        )

    def update(self) -> int:
        """A transaction that changes every row of the table."""
        return self.primary.commit("UPDATE t SET v = v + 1")

    def mark(self) -> int:
        """A transaction that leaves the table alone."""
        return self.primary.commit("INSERT INTO marker VALUES (1)")

    # --- the reader ---------------------------------------------------------------------------------------------------

    def start(self, *, new: bool = False) -> Adapter:
        """The reader's process; `new`: one that has read no replica yet."""
        reader = self._readers.reader(self.kind, self.url, self._environment, new=new)
        self.reader = self._stack.enter_context(reader)
        return self.reader

    def open(self, count: int = 1, **options: str) -> None:
        """Connections that poll, in another process."""
        self.start()
        self.reader.call("open", options=self.options(**options), count=count)

    def options(self, **options: str) -> dict[str, str]:
        """Options that both readers know."""
        return {"poll_interval": f"{INTERVAL_S * 1000:g}ms", **options}

    @property
    def catch_up_s(self) -> float:
        """How long the reader gets to see a transaction."""
        return CATCH_UP_S[self.kind]

    def catch_up(self, txid: int, timeout_s: float = 0.0) -> int:
        """Wait until the reader has published a TXID; what it has after `timeout_s` (or `catch_up_s`) at the latest."""
        timeout_s = timeout_s or self.catch_up_s
        return int(self.reader.call("wait", timeout_s + 10, txid=txid, timeout_s=timeout_s)["txid"])

    def rows(self, sql: str, connection: int = 0) -> list[tuple[Any, ...]]:
        """What the reader answers."""
        return [tuple(row) for row in self.reader.call("query", sql=sql, connection=connection)["rows"]]

    def judge(self, sql: str = ALL, *, txid: int | None = None, primary: Primary | None = None) -> Outcome:
        """Ask, and compare with what the primary had at `txid` (default: its newest); then check the integrity."""
        primary = primary or self.primary
        try:
            answered = self.rows(sql)
            if answered != primary.rows(sql, txid):
                return Outcome("wrong", self._whose(answered, sql, primary))
            problems = self.rows("PRAGMA integrity_check")
        except (ReaderError, ReaderHangs, ReaderDied) as error:
            return failed(error)
        if problems != [("ok",)]:
            return Outcome("wrong", f"integrity_check: {problems[0][0].splitlines()[-1]}")
        return Outcome("right", "right rows")

    def _whose(self, answered: list[tuple[Any, ...]], sql: str, primary: Primary) -> str:
        txid = int(self.rows("PRAGMA litestream_txid")[0][0], 16)
        for older in range(primary.txid, 0, -1):
            try:
                if primary.rows(sql, older) == answered:
                    return f"rows of TXID {older} under TXID {txid}"
            except Exception:  # noqa: BLE001 (that state does not have the table)
                continue
        return f"rows that no state ever had, under TXID {txid}"

    # --- requests -----------------------------------------------------------------------------------------------------

    @property
    def proxy(self) -> HTTPProxy:
        """Where the requests are counted."""
        assert self._proxy is not None
        return self._proxy

    def requests(self) -> Counter[str]:
        """Requests since the last `proxy.clear()`, by kind: LIST, GET, HEAD."""
        return Counter(map(kind_of, self.proxy.requests))

    def wait_for_polls(self, count: int) -> int:
        """Wait for this many listings of level 0; how many requests were made meanwhile."""
        self.proxy.clear()
        wait_until(lambda: len(self.polls()) >= count, f"{count} polls", timeout_s=20)
        return len(self.proxy.requests)

    def list_names(self, prefix: str, start_after: str) -> list[str]:
        """What the S3 server answers to a listing."""
        assert self._s3_client is not None
        answer = self._s3_client.list_objects_v2(Bucket=TEST_BUCKET, Prefix=prefix, StartAfter=start_after)
        return [entry["Key"] for entry in answer.get("Contents", [])]

    def reads(self) -> int:
        """GET requests since the last `proxy.clear()` that do not ask for news."""
        requests = list(self.proxy.requests)  # once: more may come meanwhile
        gets, polls = (sum(kind_of(r) == "GET" for r in some) for some in (requests, _polls_of(requests)))
        return gets - polls

    def polls(self) -> list[RecordedRequest]:
        """What asked for news of level 0 since the last `proxy.clear()`: listings (not their continuations) of it or of
        all levels, and reads of the file that would be the next.
        """
        return _polls_of(list(self.proxy.requests))


NAMED_RANGE = f"bytes=0-{WHOLE_FILE_BYTES - 1}"
"""What litevfs asks of a file that it knows the name of, and nothing else."""
_LEVEL = re.compile(r"/000\d/")


def _polls_of(requests: list[RecordedRequest]) -> list[RecordedRequest]:
    named = [r for r in requests if r.method == "GET" and "/0000/" in r.path and r.range == NAMED_RANGE]
    listings = [r for r in requests if kind_of(r) == "LIST" and "continuation-token" not in parse_qs(r.query)]
    return named + [r for r in listings if "/0000/" in _prefix(r) or not _LEVEL.search(_prefix(r))]


def kind_of(request: RecordedRequest) -> str:
    """LIST, GET or HEAD."""
    return "LIST" if request.method == "GET" and "list-type" in parse_qs(request.query) else request.method


def _prefix(request: RecordedRequest) -> str:
    return parse_qs(request.query).get("prefix", [""])[0]


def failed(error: Exception) -> Outcome:
    """The outcome of a reader that did not answer with rows."""
    if isinstance(error, ReaderHangs):
        return Outcome("hang", str(error))
    return Outcome("error", str(error).splitlines()[0][:120])

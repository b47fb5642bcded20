"""Reads over S3 with 20 ms a request: times and requests of litevfs, and of Litestream's VFS, on the same replica.

A real S3 server (MinIO where there is one, else moto) behind a proxy that delays and counts every request. Each case
starts with a connection that has cached nothing but what opening it reads. Rows are compared with SQLite's own answers
on the file; times are never asserted.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs

from _competitors import PEER, Competitor, assert_equal, digest, start_peer
from _databases import FULL_SIZE_BYTES, PAGE_SIZE, ROWS, ROWS_PER_BATCH, Dataset, dataset
from _results import Result, Samples, parse_arguments, ratio, report, seconds
from _s3_replica import DELAY_S, SMALL_ROWS, S3Replica, running_replica

from litevfs.live.prices import usd_month
from litevfs.testing.s3_proxy import RecordedRequest

MORE_DELAY_S = 0.12
"""Opening is measured at two delays: what the difference costs is the round trips that follow each other."""
IDLE_CONNECTIONS = 6

OPEN = "open + first query"
SCAN_PAGES, BY_INDEX, SCAN_ALL = "scan of 1,000 pages", "200 rows by index", "cold scan of everything"
DOWNLOAD = "download"
IDLE = f"idle, {IDLE_CONNECTIONS} connections, poll 1 s"


@dataclass(frozen=True, slots=True)
class Case:
    """A query on a fresh connection, and what the design wants of it."""

    name: str
    sql: str
    parameters: tuple[object, ...]
    goal: str
    meets: Callable[[float, float, float], bool]  # (seconds, GET requests, seconds of the plain download)
    peer_too: bool  # what it reads page by page takes it minutes at full size


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    rounds, idle_s = (1, 3.0) if arguments.small else (5, 15.0)
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    with running_replica(data.ltx_file) as replica:
        bench = Bench(data, replica, cases(data, small=arguments.small))
        names = ["litevfs", PEER] if bench.has_peer() else ["litevfs"]
        bench.run_round(names)
        for _ in range(rounds - 1):
            bench.run_round(["litevfs"])
        for name in names:
            bench.idle(name, idle_s)
    sizes = f"{data.database.stat().st_size / 1e6:.0f} MB database, {data.ltx_file.stat().st_size / 1e6:.1f} MB of LTX"
    title = f"S3 ({replica.server.kind}) at {DELAY_S * 1000:.0f} ms a request, {sizes}, {rounds} rounds ({PEER}: 1)"
    report(title, bench.results(small=arguments.small), arguments)


def kind_of(request: RecordedRequest) -> str:
    """LIST, GET, or another method."""
    if request.method == "GET" and "list-type" in parse_qs(request.query):
        return "LIST"
    return request.method


class Bench:
    """The cases on one replica behind one proxy, and what was measured."""

    def __init__(self, data: Dataset, replica: S3Replica, cases: list[Case]) -> None:
        self._data = data
        self._replica = replica
        self._proxy = replica.proxy
        self._cases = cases
        self._expected = {case.name: digest([data.answer(case.sql, case.parameters)]) for case in cases}
        self._times = Samples()
        self._requests = Samples()  # by (case, "<competitor> <kind>")

    # --- measuring ----------------------------------------------------------------------------------------------------

    def has_peer(self) -> bool:
        """Whether Litestream's VFS can run here; says so if not."""
        peer = start_peer(self._replica.url, self._replica.environment)
        if peer is not None:
            peer.close()
        return peer is not None

    def run_round(self, names: list[str]) -> None:
        """Every case once, of each competitor; each opening in a process of its own, as a first opening is."""
        for delay_s in (DELAY_S, MORE_DELAY_S):
            for name in names:
                self._open(name, delay_s)
        for case in self._cases:
            for name in names:
                if name != PEER or case.peer_too:
                    self._query(name, case)
        with self._delay(DELAY_S):
            self._times.add(SCAN_ALL, DOWNLOAD, self._replica.download())
        self._add_requests(SCAN_ALL, DOWNLOAD)

    def _open(self, name: str, delay_s: float) -> None:
        with self._competitor(name) as competitor:
            case = OPEN if delay_s == DELAY_S else f"{OPEN} at {delay_s * 1000:.0f} ms"
            with self._delay(delay_s):
                self._times.add(case, name, competitor.call("open")["seconds"])
            self._add_requests(case, name)

    def _query(self, name: str, case: Case) -> None:
        with self._competitor(name) as competitor:
            with self._delay(DELAY_S):  # of the opening, too: it is when litevfs measures the line
                competitor.call("open")
            with self._delay(DELAY_S):
                took, answers = competitor.timed(case.sql, [case.parameters])
            self._times.add(case.name, name, took)
            self._add_requests(case.name, name)
            assert_equal(case.name, {"SQLite": self._expected[case.name], name: answers})

    def idle(self, name: str, window_s: float) -> None:
        """Requests a second of idle connections."""
        with self._competitor(name) as competitor:
            competitor.call("open", count=IDLE_CONNECTIONS)
            self._proxy.clear()
            threading.Event().wait(window_s)
            counts = Counter(map(kind_of, self._proxy.requests))
            for kind in ("LIST", "GET"):
                self._requests.add(IDLE, f"{name} {kind}", counts[kind] / window_s)

    def _competitor(self, name: str) -> Competitor:
        kind = "peer" if name == PEER else name
        return Competitor(kind, self._replica.url, self._replica.environment, name=name)

    @contextmanager
    def _delay(self, delay_s: float) -> Iterator[None]:
        """Delay requests, and count from here on."""
        self._proxy.clear()
        self._proxy.delay_s = delay_s
        try:
            yield
        finally:
            self._proxy.delay_s = 0.0

    def _add_requests(self, case: str, name: str) -> None:
        counts = Counter(map(kind_of, self._proxy.requests))
        for kind in {"LIST", "GET"} | counts.keys():
            self._requests.add(case, f"{name} {kind}", counts[kind])

    # --- the table ----------------------------------------------------------------------------------------------------

    def results(self, *, small: bool) -> list[Result]:
        """The rows; goals are for the full size."""
        download = self._times.median(SCAN_ALL, DOWNLOAD)
        assert download is not None
        rows = [self._opening(small=small)]
        for case in self._cases:
            ours, gets = self._times.median(case.name, "litevfs"), self._requests.median(case.name, "litevfs GET")
            assert ours is not None
            assert gets is not None
            values = self._times_and_requests(case.name)
            if case.name == SCAN_ALL:
                values["litevfs"] += f", {ratio(ours, download)} download"
            rows.append(self._result(case.name, values, case.goal, None if small else case.meets(ours, gets, download)))
        rate = self._data.ltx_file.stat().st_size / 1e6 / download
        shown = {
            "litevfs": f"{seconds(download)}, {rate:.0f} MB/s",
            "requests": self._shown_requests(SCAN_ALL, DOWNLOAD),
        }
        rows.append(self._result("(plain parallel download)", shown))
        rows.append(self._idling(small=small))
        return rows

    def _opening(self, *, small: bool) -> Result:
        values = self._times_and_requests(OPEN)
        trips = {name: self._round_trips(name) for name in ("litevfs", PEER)}
        for name, count in trips.items():
            if count is not None:
                values[name] += f", {count:.1f} trips"
        ours = trips["litevfs"]
        met = None if small or ours is None else round(ours) <= 2
        return self._result(OPEN, values, "<= 2 round trips", met)

    def _round_trips(self, name: str) -> float | None:
        """Requests of an opening that had to wait for each other, from what a longer delay adds."""
        base = self._times.median(OPEN, name)
        more = self._times.median(f"{OPEN} at {MORE_DELAY_S * 1000:.0f} ms", name)
        return None if base is None or more is None else (more - base) / (MORE_DELAY_S - DELAY_S)

    def _idling(self, *, small: bool) -> Result:
        ours, values = self._cost("litevfs"), {}
        assert ours is not None
        lists, gets, usd = ours
        values["litevfs"] = f"{gets:.1f} GET/s + {60 * lists:.0f} LIST/min, ${usd:.2f} a month"
        peer = self._cost(PEER)
        if peer is not None:
            values |= {PEER: f"{peer[0]:.1f} LIST/s, ${peer[2]:.2f} a month", f"/{PEER}": ratio(usd, peer[2])}
        met = None if small else gets <= 1.2 and 60 * lists <= 5
        return self._result(IDLE, values, "60 GET + 4 LIST a minute", met)

    def _cost(self, name: str) -> tuple[float, float, float] | None:
        """(LIST a second, GET a second, US dollars a month) of idle connections."""
        lists, gets = (self._requests.median(IDLE, f"{name} {kind}") for kind in ("LIST", "GET"))
        if lists is None or gets is None:
            return None
        return lists, gets, usd_month(lists, gets, 1.0)

    def _times_and_requests(self, case: str) -> dict[str, str]:
        ours, peer = self._times.median(case, "litevfs"), self._times.median(case, PEER)
        return {
            "litevfs": seconds(ours),
            "requests": self._shown_requests(case, "litevfs"),
            PEER: seconds(peer),
            f"requests of {PEER}": self._shown_requests(case, PEER),
            f"/{PEER}": ratio(ours, peer),
        }

    def _shown_requests(self, case: str, name: str) -> str:
        counts = {kind: self._requests.median(case, f"{name} {kind}") for kind in ("LIST", "GET", "HEAD")}
        return " + ".join(f"{count:g} {kind}" for kind, count in counts.items() if count)

    def _result(self, case: str, values: Mapping[str, str], goal: str = "", met: bool | None = None) -> Result:
        samples = {"seconds": self._times.all.get(case), "requests": self._requests.all.get(case)}
        return Result(case, dict(values), goal, met, samples)


def cases(data: Dataset, *, small: bool) -> list[Case]:
    """The queries; with `small`, the peer gets less to do: it waits for every page."""
    rows_of_1000_pages = ROWS * 1000 * PAGE_SIZE // FULL_SIZE_BYTES
    first = data.rows // 3
    return [
        Case(
            SCAN_PAGES,
            "SELECT sum(amount), count(note) FROM orders WHERE id BETWEEN ? AND ?",
            (first, first + rows_of_1000_pages // (20 if small else 1) - 1),
            "<= 0.25 s, <= 15 GET",
            lambda took, gets, _: took <= 0.25 and gets <= 15,
            peer_too=True,
        ),
        Case(
            BY_INDEX,
            "SELECT count(*), sum(amount), max(note) FROM orders WHERE batch = ?",
            (data.batches // 2,),
            "<= 0.2 s",
            lambda took, *_: took <= 0.2,
            peer_too=not small,
        ),
        Case(
            SCAN_ALL,
            "SELECT count(note), sum(amount), (SELECT sum(batch) FROM orders INDEXED BY orders_by_batch) FROM orders",
            (),
            "<= 2x download",
            lambda took, _, download: took <= 2 * download,
            peer_too=False,
        ),
    ]


assert ROWS_PER_BATCH == 200  # as the case's name says


if __name__ == "__main__":
    main(sys.argv[1:])

"""Which tests show which item of the test plan. Owns the table of IDs and `pytest --plan`; knows nothing of litevfs.

A test names what it shows with `@pytest.mark.plan("L07")`, one ID or several. `pytest --plan` ends the run with a
table of every ID, its tests and how they went. An unknown ID stops the collection: a typing error must not look like
a missing test.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pytest

TITLES: Final = {
    "L01": "100 readers while the poller publishes: every read has one TXID",
    "L02": "storage failures during reads end in a right answer or a typed error",
    "L03": "TXID gaps: named, covered by compaction, or filled late",
    "L04": "memory of the index: at most 20 bytes a page",
    "L05": "all eight page sizes",
    "L06": "an open read transaction keeps its state, the next sees the new one",
    "L07": "lock states: legal moves, illegal ones, writes refused",
    "L08": "one read transaction through 1,000 others, compaction and retention",
    "L09": "two writers at once: the ledger adds up in every read",
    "L10": "the poller outlives listing failures",
    "L11": "close while a storage call hangs",
    "L12": "200 rapid updates: the last value is seen",
    "L13": "poll intervals, and polling off: listings counted",
    "L14": "many temp files: none left, none shared",
    "L15": "one temp name opened twice, deleted once",
    "L16": "temp folder full or not writable: an error at once",
    "L17": "temp file deleted on close in the middle of a query",
    "L18": "pages around the lock page, every page size",
    "L19": "the patched header of page 1, whole and in part",
    "L20": "replicas that are empty, late or hold no page",
    "L21": "databases that shrink: auto-vacuum, incremental vacuum, VACUUM",
    "L22": "PRAGMAs: SQLite's and litestream_*",
    "L23": "benchmark of a large database",
    "L24": "working set ten times the cache",
    "L25": "latency on each storage call: right rows, requests counted",
    "L26": "32 connections at once: one poller, one index",
    "L27": "a truncated upload is not published",
    "L28": "a corrupt page index: an error, then recovery",
    "L29": "listings that hide new files or show deleted ones",
    "L30": "file descriptors are back to the start after close",
    "L31": "allocation failure while an index is built",
    "L32": "64 readers and a tight writer loop",
    "L33": "random queries compared with the primary",
    "L34": "chaos: readers, writer, random faults, one seed",
    "D01": "partial writes are rolled back at the next start",
    "D02": "five restarts in a row give the same data",
    "D03": "half of a flush stored: the last whole TXID is served",
    "D04": "a slow upload is seen whole or not at all",
    "D05": "files deleted while they are read",
    "D06": "100 concurrent commits: TXIDs unique and persisted",
    "D07": "no handle left after 100 rounds",
    "D08": "delete and retention remove every file",
    "D09": "caches under memory pressure",
    "D10": "one conformance suite for every replica client",
    "D11": "copies between clients are byte-identical",
    "D12": "nothing is served before the first state is complete",
    "D13": "random operations against a model",
    "D14": "TXIDs up to 2^64-1",
    "D15": "SIGKILL at random moments",
    "F01": "fault: HTTP status codes",
    "F02": "fault: a number of times",
    "F03": "fault: with a probability",
    "F04": "fault: by method",
    "F05": "fault: delay and jitter",
    "F06": "fault: connection dropped before or within a body",
    "F07": "fault: body truncated",
    "F08": "fault: body corrupted",
    "F09": "fault: by path pattern",
    "F10": "faults set and cleared in Python or over HTTP",
    "F11": "a fault whose count has reached zero is gone",
    "E01": "stale or repeated listings neither loop nor go back",
    "E02": "no request is repeated without a pause",
    "E03": "a replaced replica is noticed and never mixed",
    "E04": "retries: jitter, bounds, reset, Retry-After",
    "E05": "responses without the headers we rely on",
    "E06": "the states of a replica: each transition reached",
    "K01": "defaults work, bad options are refused with a hint",
    "K02": "restart on the same local state: same answers, less traffic",
    "K03": "readers and writer in different processes",
    "K04": "large and many transactions, wide tables, long strings",
    "K05": "SQLite's own messages reach the user",
    "K06": "status, counters and logs after a known workload",
    "K07": "subscribers to TXIDs: once each, in order",
    "K08": "the installed command",
    "K09": "no credential is ever shown",
    "K10": "hostile files: bounded memory, a clear error",
}
"""Every ID of the test plan, in its order."""

OUTCOMES: Final = ("failed", "passed", "skipped", "deselected", "not run")
"""What can become of one test, the one that decides about its ID first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --plan."""
    parser.addoption("--plan", action="store_true", help="end with a table of the test plan: each ID and its tests")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the report when it was asked for."""
    config.addinivalue_line("markers", "plan(*ids): the items of the test plan that this test shows")
    if config.getoption("--plan") and config.getoption("dist", "no") != "no":
        raise pytest.UsageError("--plan needs all tests in one process: add -n 0")
    config.pluginmanager.register(PlanReport(show=config.getoption("--plan")), "litevfs-plan-report")


class PlanReport:
    """Collects which tests carry which ID and what became of them."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._outcomes: dict[str, str] = {}  # node ID of a test that carries an ID -> one of OUTCOMES
        self._tests: dict[str, list[str]] = {plan_id: [] for plan_id in TITLES}  # plan ID -> node IDs

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note the IDs of a test; refuse those that the plan does not have."""
        plan_ids = _plan_ids(item)
        unknown = [plan_id for plan_id in plan_ids if plan_id not in TITLES]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: the test plan has no {', '.join(map(str, unknown))}")
        for plan_id in plan_ids:
            self._tests[plan_id].append(item.nodeid)
            self._outcomes[item.nodeid] = "not run"

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Tests left out by -m or -k still count as written."""
        for item in items:
            if item.nodeid in self._outcomes:
                self._outcomes[item.nodeid] = "deselected"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and tear-down of one test: the worst of them counts."""
        if report.nodeid not in self._outcomes or (report.passed and report.when != "call"):
            return
        if self._outcomes[report.nodeid] != "failed":
            self._outcomes[report.nodeid] = report.outcome

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        if self._show:
            terminalreporter.section("test plan")
            for line in self._lines():
                terminalreporter.write_line(line)

    def _lines(self) -> Iterator[str]:
        verdicts = {plan_id: _verdict(map(self._outcomes.__getitem__, tests)) for plan_id, tests in self._tests.items()}
        for plan_id, title in TITLES.items():
            yield f"{plan_id}  {verdicts[plan_id]:<10}  {title}"
            for function, outcomes in self._functions(plan_id).items():
                yield f"       {_count(outcomes)}: {function}"
        yield f"{len(TITLES)} items: {_count(Counter(verdicts.values()))}"

    def _functions(self, plan_id: str) -> dict[str, Counter[str]]:
        """Test functions of an ID with the outcomes of their parameter sets, in order of collection."""
        functions: dict[str, Counter[str]] = defaultdict(Counter)
        for node_id in self._tests[plan_id]:
            functions[node_id.partition("[")[0]][self._outcomes[node_id]] += 1
        return functions


def _plan_ids(item: pytest.Item) -> list[str]:
    """IDs of a test, its class and its module, each once."""
    ids = (plan_id for mark in item.iter_markers("plan") for plan_id in mark.args)
    return list(dict.fromkeys(ids))


def _verdict(outcomes: Iterable[str]) -> str:
    """What the tests of one ID say together: the first of OUTCOMES that one of them has."""
    seen = set(outcomes)
    return next((outcome for outcome in OUTCOMES if outcome in seen), "missing")


def _count(counter: Counter[str]) -> str:
    return ", ".join(f"{counter[outcome]} {outcome}" for outcome in (*OUTCOMES, "missing") if counter[outcome])

"""Which tests show which item of the test plan (`PLAN.md`). Owns `pytest --plan`; knows nothing of litevfs.

A test names what it shows with `@pytest.mark.plan("L07")`, one ID or several. `pytest --plan` ends the run with a
table of every ID, its tests and how they went. An unknown ID stops the collection: a typing error must not look like
a missing test.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

PAGE: Final = Path(__file__).with_name("PLAN.md")
"""The page that says what each ID means; its tables are the only list of them."""
_ROW = re.compile(r"^\| ([A-Z]\d\d) \| (.+?) \| (.+) \|$", re.MULTILINE)


def read_titles(page: str) -> dict[str, str]:
    """Every ID of the page and what happens there, in its order. Raises ValueError for an ID that is there twice."""
    rows = [(row[1], row[2]) for row in _ROW.finditer(page)]
    twice = [plan_id for plan_id, count in Counter(plan_id for plan_id, _ in rows).items() if count > 1]
    if twice:
        raise ValueError(f"IDs that are there twice: {', '.join(twice)}")
    return dict(rows)


TITLES: Final = read_titles(PAGE.read_text())
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

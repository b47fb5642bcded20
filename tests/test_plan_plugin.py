from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plan_plugin import TITLES

pytestmark = pytest.mark.slow

SUITE = """
    import pytest

    @pytest.mark.plan("L01")
    def test_that_passes(): pass

    @pytest.mark.plan("L02", "L03")
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_with_parameters(number): assert number != 2

    @pytest.mark.plan("L04")
    def test_that_skips(): pytest.skip("not here")

    @pytest.mark.plan("L05")
    @pytest.mark.chaos
    def test_left_out(): pass

    @pytest.fixture
    def fails_at_the_end():
        yield
        raise OSError("in the tear-down")

    @pytest.mark.plan("L06")
    def test_whose_teardown_fails(fails_at_the_end): pass

    @pytest.mark.plan("D01")
    class TestClass:
        @pytest.mark.plan("D02")
        def test_of_class(self): pass

    def test_without_an_id(): pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder whose test runs use the plugin, each in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeini("[pytest]\nmarkers = chaos\naddopts = --strict-markers")
    pytester.makeconftest('pytest_plugins = ["tests.plan_plugin"]')
    return pytester


def test_table_has_every_id_of_the_plan_once_and_in_order():
    sizes = zip("LDFEK", (34, 15, 11, 6, 10), strict=True)
    expected = [f"{part}{number:02}" for part, size in sizes for number in range(1, size + 1)]
    assert list(TITLES) == expected


def test_report_shows_each_id_with_its_tests_and_how_they_went(suite: pytest.Pytester):
    suite.makepyfile(test_suite=SUITE)
    result = suite.runpytest_subprocess("--plan", "-m", "not chaos")

    verdicts = dict(re.findall(r"^([LDFEK]\d\d)  (\w+(?: run)?) ", result.stdout.str(), re.MULTILINE))
    assert list(verdicts) == list(TITLES)
    shown = {plan_id: verdict for plan_id, verdict in verdicts.items() if verdict != "missing"}
    assert shown == {
        "L01": "passed",
        "L02": "failed",
        "L03": "failed",
        "L04": "skipped",
        "L05": "deselected",
        "L06": "failed",
        "D01": "passed",
        "D02": "passed",
    }
    result.stdout.fnmatch_lines(
        [
            "*1 passed: test_suite.py::test_that_passes",
            "*1 failed, 2 passed: test_suite.py::test_with_parameters",
            "*1 skipped: test_suite.py::test_that_skips",
            "*1 deselected: test_suite.py::test_left_out",
            "*1 failed: test_suite.py::test_whose_teardown_fails",
            "*1 passed: test_suite.py::TestClass::test_of_class",
            "76 items: 3 failed, 3 passed, 1 skipped, 1 deselected, 68 missing",
        ]
    )
    result.stdout.no_fnmatch_line("*test_without_an_id")


def test_report_tells_tests_that_were_not_reached(suite: pytest.Pytester):
    suite.makepyfile(test_suite=SUITE)
    result = suite.runpytest_subprocess("--plan", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["L01  not run *", "*1 not run: test_suite.py::test_that_passes"])


def test_report_is_printed_only_when_asked_for(suite: pytest.Pytester):
    suite.makepyfile(test_suite=SUITE)
    suite.runpytest_subprocess().stdout.no_fnmatch_line("*L01*")


def test_unknown_id_stops_the_collection(suite: pytest.Pytester):
    suite.makepyfile(test_suite='import pytest\n@pytest.mark.plan("L35")\ndef test_it(): pass')
    result = suite.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_suite.py::test_it: the test plan has no L35"])


def test_report_is_refused_where_tests_run_in_several_processes(suite: pytest.Pytester):
    suite.makepyfile(test_suite=SUITE)
    result = suite.runpytest_subprocess("--plan", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--plan needs all tests in one process: add -n 0*"])

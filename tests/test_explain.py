"""`explain_io`: the requests of a query, and why each was made."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import litevfs
from litevfs.cli import main
from litevfs.errors import OptionError
from litevfs.explain import NEEDED, OPENING, REASONS, UNUSED, USED, WARM, WARM_USED, IOReport, IORequest
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one

pytestmark = pytest.mark.slow

FILL = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)
    INSERT INTO t SELECT i, i % 50, randomblob(3000) FROM n
"""


@pytest.fixture
def script():
    """A remote replica of one snapshot of 4.5 MB."""
    with Script(block_size=1 << 16, lists_levels=True) as script, Primary(script.writer) as primary:
        primary.run("CREATE TABLE t(id INTEGER PRIMARY KEY, k, x); CREATE INDEX t_k ON t(k)")
        primary.commit(FILL)
        primary.compact(9, 1, 2)
        primary.delete(0)
        yield script


def test_a_look_up_needs_what_it_reads_and_reads_nothing_ahead(script):
    script.clear()
    report = litevfs.explain_io(script.url, "SELECT x FROM t WHERE id = :id", {"id": 700})
    assert report.rows == 1
    assert len(report.requests) == sum(script.lists.values()) + len(script.reads)
    assert [request.kind for request in report.requests if request.why == OPENING] == ["LIST", "GET", "GET"]
    assert report.count(NEEDED)[0] >= 1
    assert report.count(UNUSED) == (0, 0)
    assert report.count()[1] == sum(size or 0 for _, _, size in script.reads)
    assert 3 <= report.rounds <= len(report.requests)


def test_a_scan_is_read_ahead_and_used(script):
    report = litevfs.explain_io(script.url, "SELECT sum(length(x)) FROM t")
    used, size = report.count(USED)
    assert used >= 3
    assert size > 3_000_000
    assert report.count()[0] == sum(report.count(why)[0] for why in REASONS)


def test_what_queries_of_warm_request_has_its_own_reason(script):
    script.clear()
    report = litevfs.explain_io(script.url, "SELECT 1", warm="SELECT sum(length(x)) FROM t; SELECT count(k) FROM t")
    assert report.warmed == (2, 2)
    assert len(report.requests) == sum(script.lists.values()) + len(script.reads)
    assert [request.kind for request in report.requests if request.why == OPENING] == ["LIST", "GET", "GET"]
    requests, size = report.count(WARM)
    assert requests >= 3
    assert size > 3_000_000
    assert report.count(NEEDED) == report.count(USED) == (0, 0)
    assert report.rounds <= 3
    assert "warm: 2 of 2 queries succeeded" in str(report)
    assert "\nwarm  " in str(report)


def test_a_query_that_was_warmed_needs_nothing_but_what_warm_has_requested(script):
    sql = "SELECT x FROM t WHERE id = 700"
    report = litevfs.explain_io(script.url, f"PRAGMA litestream_warm; {sql}", warm=sql)
    assert report.warmed == (1, 1)
    assert report.count(WARM_USED)[0] >= 1
    assert [report.count(why)[0] for why in (NEEDED, USED, UNUSED, WARM)] == [0, 0, 0, 0]


def test_without_warm_a_report_does_not_speak_of_it(script):
    assert "warm" not in str(litevfs.explain_io(script.url, "SELECT count(*) FROM t"))


def test_wrong_sql_in_warm_is_refused(script):
    with pytest.raises(OptionError, match="option warm: no such table: missing"):
        litevfs.explain_io(script.url, "SELECT 1", warm="SELECT * FROM missing")


def test_the_view_is_fresh_and_others_do_not_notice(script):
    with connected(script.url, poll_interval=0) as connection:
        assert one(connection, "SELECT count(*) FROM t WHERE length(x) = 3000") == 1500
        script.clear()
        report = litevfs.explain_io(script.url, "SELECT count(*) FROM t")
        assert report.count(OPENING)[0] == 3
        script.clear()
        assert one(connection, "SELECT count(*) FROM t") == 1500
        assert script.reads == []


def test_a_query_that_fails_and_options_of_its_own_are_refused(script):
    with pytest.raises(litevfs.LitevfsError, match="explain_io sets poll_interval itself"):
        litevfs.explain_io(script.url, "SELECT 1", poll_interval="1s")
    with pytest.raises(OptionError, match="prefetsch"):
        litevfs.explain_io(script.url, "SELECT 1", prefetsch=True)
    with pytest.raises(Exception, match="no such table"):
        litevfs.explain_io(script.url, "SELECT * FROM missing")
    assert litevfs.explain_io(script.url, "SELECT 1").rows == 1


def test_an_estimate_counts_what_waits_for_one_another():
    def request(began_s: float, took_s: float) -> IORequest:
        return IORequest(began_s, took_s, "GET", "9/x", 0, 10, NEEDED)

    beside = IOReport((request(0.0, 0.02), request(0.0, 0.02), request(0.01, 0.02)), 1, 0.0, 0.03, 0.02)
    assert beside.rounds == 1
    chain = IOReport((request(0.0, 0.02), request(0.02, 0.02), request(0.05, 0.02)), 1, 0.0, 0.08, 0.02)
    assert chain.rounds == 3
    assert chain.estimate_s(0.02) == pytest.approx(0.08)
    assert chain.estimate_s(0.1) == pytest.approx(0.02 + 3 * 0.1)


def test_the_command_prints_the_requests_the_sums_and_the_estimates(script, capsys):
    assert main(["explain-io", script.url, "SELECT count(*) FROM t WHERE k = 7"]) == 0
    output = capsys.readouterr().out
    assert "LIST" in output
    assert "GET" in output
    assert "in all" in output
    assert "100 ms a request" in output


def test_the_command_takes_queries_of_warm(script, capsys):
    arguments = ["--warm", "SELECT sum(length(x)) FROM t", "--warm", "SELECT count(k) FROM t"]
    assert main(["explain-io", script.url, "SELECT count(*) FROM t WHERE k = 7", *arguments]) == 0
    assert "warm: 2 of 2 queries succeeded" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra `charts` (pip install 'litevfs[charts]')")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.may_leak("matplotlib keeps the files of its fonts open")
def test_the_command_draws_the_requests(script, tmp_path, capsys):
    assert main(["explain-io", script.url, "SELECT count(*) FROM t", "--png", str(tmp_path / "io.png")]) == 0
    assert (tmp_path / "io.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_without_matplotlib_drawing_is_refused_by_name(script, tmp_path, capsys):
    assert main(["explain-io", script.url, "SELECT 1", "--png", str(tmp_path / "io.png")]) != 0
    assert "litevfs[charts]" in capsys.readouterr().err

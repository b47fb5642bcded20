"""Every benchmark runs at its small size, reads right answers and says what it measured. Times are never asserted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
WITH_JSON = {"follow", "local", "memory", "replicate", "s3", "scan_out"}  # each has a test of its own
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))


def run(name: str, folder: Path, *arguments: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """The script as `make bench` runs it, with a folder for temporary files of its own, so that nothing is cached."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--small", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout_s)


def measured(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The results of a run, by case."""
    done = run(name, folder, "--json", "results.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((folder / "results.json").read_text())
    assert document["small"] is True
    results = {result["case"]: result for result in document["results"]}
    assert all(case in done.stdout for case in results)
    return results


@pytest.mark.soak  # a minute in all, and .ci/run runs each script
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in WITH_JSON])
def test_every_other_benchmark_runs(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.plan("L23")
def test_local_compares_equal_answers_of_all_competitors(tmp_path: Path) -> None:
    results = measured("local", tmp_path)
    competitors = {"litevfs", "native, rollback", "native, WAL"} | (
        {"litestream-vfs"} if find_spec("litestream_vfs") else set()
    )
    assert set(results) == {
        "open + first query",
        "full scan, first",
        "full scan, second",
        "hot point query",
        "random point query",
    }
    for result in results.values():
        assert set(result["samples"]) == competitors
        assert all(len(times) == 2 and min(times) > 0 for times in result["samples"].values())


@pytest.mark.soak  # half a minute with the next one, and .ci/run runs both scripts
@pytest.mark.s3
def test_s3_counts_the_requests_of_every_case(tmp_path: Path) -> None:
    results = measured("s3", tmp_path)
    by_case = {case: result["samples"]["requests"] for case, result in results.items() if result["samples"]["requests"]}
    opening = by_case["open + first query"]
    assert 1 <= opening["litevfs LIST"][0] <= 10
    assert 1 <= opening["litevfs GET"][0] <= 4
    scan = by_case["cold scan of everything"]
    assert 1 <= scan["litevfs GET"][0] < 30  # 1,000 pages; one request each would be 1,000
    assert scan["download GET"] == [1]
    idle = by_case["idle, 6 connections, poll 1 s"]
    assert 0 < idle["litevfs GET"][0] <= 2
    assert idle["litevfs LIST"][0] <= 1


@pytest.mark.plan("L04")
def test_memory_of_the_page_map_is_within_its_limit(tmp_path: Path) -> None:
    results = measured("memory", tmp_path)
    judged = [result for result in results.values() if result["met"] is not None]
    assert len(judged) == 3
    assert all(result["met"] for result in judged), results


def followed(folder: Path, *arguments: str, timeout_s: float = 100) -> dict[str, Any]:
    """What the readers of the file that litevfs follows have counted."""
    done = run("follow", folder, "--folder", "--json", "results.json", *arguments, timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    counted: dict[str, Any] = json.loads((folder / "results.json").read_text())[0]
    assert counted[""] == "litevfs"
    return counted


SOUND = {"torn": 0, "back": 0, "corrupt": 0, "errors": 0, "missing at the end": 0, "integrity check at the end": "ok"}


@pytest.mark.soak  # .ci/run runs the script
def test_follow_counts_what_readers_see(tmp_path: Path) -> None:
    counted = followed(tmp_path)
    assert counted.items() >= SOUND.items(), counted
    assert counted["looks"] > 10


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_readers_of_a_follower_that_is_killed_hundreds_of_times_see_whole_states_only(tmp_path: Path) -> None:
    counted = followed(tmp_path, "--transactions", "10000", timeout_s=1400)
    assert counted.items() >= SOUND.items(), counted
    assert counted["kills"] > 200
    assert counted["checks"] > 100


@pytest.mark.soak  # clusters take their time to start, and .ci/run runs the script
@pytest.mark.timeout(600)
def test_scan_out_reads_the_same_rows_everywhere(tmp_path: Path) -> None:
    done = run("scan_out", tmp_path, timeout_s=500)
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
def test_replicate_compares_rounds_with_and_without_and_checks_the_replica(tmp_path: Path) -> None:
    results = measured("replicate", tmp_path)
    replicators = {"litevfs"} | ({"litestream"} if shutil.which("litestream") else set())
    for pace in ("as fast as it can", "the first second after idling", "200 tx/s"):
        samples = results[f"{pace}, folder: transactions a second"]["samples"]
        assert set(samples) == replicators | {"alone"}
        assert all(len(rates) == 1 and rates[0] > 0 for rates in samples.values())
    for sync_interval in ("1 s", "0.1 s"):
        lags = [results[f"sync {sync_interval}, folder: {key}"]["samples"] for key in ("median", "p99", "worst")]
        for who in replicators:
            median, p99, worst = (lag[who][0] for lag in lags)
            assert 0 < median <= p99 <= worst
    uploads = results["uploads: sync 0.1 s, folder, litevfs"]["samples"]
    assert uploads["files"] > 1
    assert uploads["changed"] < uploads["wal"]  # transactions share pages
    assert 0.1 < uploads["uploaded"] / uploads["changed"] < 1.1
    assert uploads["wholes"] == 0

"""`litevfs doctor`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_a_sound_storage_ends_with_0(run: Run, orders_copy: Path):
    before = sorted(orders_copy.rglob("*"))
    result = run("doctor", orders_copy)
    assert result.code == 0
    assert "a file that exists is not replaced" in result.out
    assert "to mend" not in result.out
    assert sorted(orders_copy.rglob("*")) == before


def test_a_storage_that_is_missing_ends_with_1_and_says_what_would_mend_it(run: Run, tmp_path: Path):
    result = run("doctor", "--reader", tmp_path / "none")
    assert result.code == 1
    assert "no such replica folder" in result.out
    assert "to mend:\nlist: check the path" in result.out


def test_json_has_every_check(run: Run, orders: str):
    result = run("doctor", "--reader", "--json", orders)
    assert result.code == 0
    assert [check["name"] for check in result.json] == ["list", "read", "range", "round trip", "throughput"]
    assert set(result.json[0]) == {"role", "name", "outcome", "detail", "mend"}


def test_a_url_that_means_nothing_is_one_line(run: Run):
    result = run("doctor", "s4://bucket/db")
    assert result.code != 0
    assert "unknown scheme" in result.err

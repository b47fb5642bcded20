"""The commands that look at a replica: status, ls, history, dump, shell. Oracles: the folder and the files' bytes."""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest


def files_of(replica: str) -> list[Path]:
    return sorted(Path(replica, "ltx", "0").iterdir())


def test_ls_lists_every_file_with_its_size(run: Callable[..., Any], orders: str):
    listed = run("ls", orders, "--json").json
    assert [(one["level"], Path(one["key"]).name, one["size"]) for one in listed] == [
        (0, path.name, path.stat().st_size) for path in files_of(orders)
    ]
    text = run("ls", orders).out.splitlines()
    assert text[-1].startswith("12 files, ")
    assert len(text) == 2 + 12 + 2


def test_ls_of_one_level_and_of_an_empty_replica(run: Callable[..., Any], orders: str, tmp_path: Path):
    assert run("ls", orders, "--level", "1", "--json").json == []
    assert run("ls", tmp_path).out == "no LTX files\n"
    assert run("ls", orders, "--level", "10").code == 2


def test_status_says_what_the_files_say(run: Callable[..., Any], orders: str):
    status = run("status", orders, "--json").json
    header = files_of(orders)[-1].read_bytes()[:100]
    page_size, commit = struct.unpack_from(">II", header, 8)
    (timestamp_ms,) = struct.unpack_from(">q", header, 32)
    assert (status["page_size"], status["commit"]) == (page_size, commit)
    assert status["txid"] == "000000000000000c"
    assert status["state"] == "current"
    assert round(datetime.fromisoformat(status["time"]).timestamp() * 1000) == timestamp_ms
    sizes = sum(path.stat().st_size for path in files_of(orders))
    assert status["levels"] == [
        {"level": 0, "files": 12, "bytes": sizes, "min_txid": f"{1:016x}", "max_txid": f"{12:016x}"}
    ]
    text = run("status", orders).out
    assert "TXID         000000000000000c\n" in text
    assert f"{commit} pages of {page_size} bytes" in text


def test_status_of_an_earlier_state_is_of_that_state(run: Callable[..., Any], orders: str):
    page_size, commit = struct.unpack_from(">II", files_of(orders)[2].read_bytes(), 8)
    status = run("status", orders, "--txid", "3", "--json").json
    assert (status["txid"], status["state"]) == ("0000000000000003", "fixed")
    assert (status["page_size"], status["commit"]) == (page_size, commit)
    assert f"{commit} pages of {page_size} bytes" in run("status", orders, "--txid", "3").out


def test_status_of_an_empty_replica_fails(run: Callable[..., Any], tmp_path: Path):
    result = run("status", tmp_path, "--open-timeout", "0")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("litevfs: error: ")


def test_history_lists_states_newest_first_with_the_headers_times(run: Callable[..., Any], orders: str):
    rows = run("history", orders, "--json").json
    assert [row["txid"] for row in rows] == [f"{txid:016x}" for txid in range(12, 0, -1)]
    for row, path in zip(rows, reversed(files_of(orders)), strict=True):
        page_size, commit = struct.unpack_from(">II", path.read_bytes(), 8)
        (timestamp_ms,) = struct.unpack_from(">q", path.read_bytes(), 32)
        assert round(datetime.fromisoformat(row["time"]).timestamp() * 1000) == timestamp_ms
        assert row["size"] == page_size * commit


def test_history_says_what_it_leaves_out(run: Callable[..., Any], orders: str, tmp_path: Path):
    out = run("history", orders, "--limit", "3").out
    assert out.splitlines()[-1] == "9 older states not shown; --limit 0 shows all"
    assert len(run("history", orders, "--limit", "0", "--json").json) == 12
    assert run("history", orders, "--limit", "-1").code == 2
    nothing = run("history", tmp_path)
    assert nothing.code == 1
    assert "; hint: " in nothing.err


def test_dump_of_a_local_file_says_what_its_bytes_say(run: Callable[..., Any], orders: str):
    path = files_of(orders)[4]
    data = path.read_bytes()
    dump = run("dump", path, "--json", "--pages").json
    flags, page_size, commit, low, high, timestamp_ms = struct.unpack_from(">IIIQQq", data, 4)
    assert dump["size"] == len(data)
    assert dump["header"]["flags"] == flags
    assert (dump["header"]["page_size"], dump["header"]["commit"]) == (page_size, commit)
    assert (dump["header"]["min_txid"], dump["header"]["max_txid"]) == (f"{low:016x}", f"{high:016x}")
    assert round(datetime.fromisoformat(dump["header"]["timestamp"]).timestamp() * 1000) == timestamp_ms
    assert dump["trailer"]["file_checksum"] == data[-8:].hex()
    assert dump["index"]["pages"] == len(dump["pages"])
    for page in dump["pages"]:
        pgno, _, size = struct.unpack_from(">IHI", data, page["offset"])
        assert (pgno, size + 10) == (page["pgno"], page["size"])


def test_dump_of_a_replica_picks_the_file(run: Callable[..., Any], orders: str):
    keys = {
        arguments: Path(run("dump", orders, "--json", *arguments).json["key"]).name
        for arguments in [(), ("--txid", "3"), ("--level", "0")]
    }
    assert keys == {
        (): f"{12:016x}-{12:016x}.ltx",
        ("--txid", "3"): f"{3:016x}-{3:016x}.ltx",
        ("--level", "0"): f"{12:016x}-{12:016x}.ltx",
    }
    assert run("dump", orders, "--txid", "99").code == 1
    assert run("dump", orders, "--txid", "zz").code == 2


def test_dump_prints_pages_as_a_table(run: Callable[..., Any], orders: str):
    out = run("dump", files_of(orders)[-1], "--pages").out
    assert "pages                2, from 1 to 8\n" in out
    assert [line.split()[0] for line in out.split("\n\n")[1].splitlines()[2:]] == ["1", "8"]


def test_dump_of_a_truncated_file_fails(run: Callable[..., Any], orders: str, tmp_path: Path):
    path = tmp_path / "short.ltx"
    path.write_bytes(files_of(orders)[4].read_bytes()[:-1])
    result = run("dump", path)
    assert (result.code, result.out) == (1, "")


def test_shell_runs_what_comes_through_a_pipe(run: Callable[..., Any], orders: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(".tables\nSELECT count(*)\nFROM orders;\nPRAGMA litestream_txid;\n"))
    result = run("shell", orders)
    assert (result.code, result.out.split()) == (0, ["customer", "orders", "2667", "000000000000000c"])


@pytest.mark.plan("K05")
def test_shell_stops_at_the_first_error_of_a_pipe(
    run: Callable[..., Any], orders: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1;\nDELETE FROM orders;\nSELECT 2;\n"))
    result = run("shell", orders)
    assert (result.code, result.out) == (1, "1\n")
    assert "attempt to write a readonly database" in result.err
    assert "Traceback" not in result.err


def test_json_of_all_of_them_is_one_value(run: Callable[..., Any], orders: str):
    for command in ("ls", "status", "history", "dump", "verify"):
        assert json.loads(run(command, orders, "--json").out)

"""`litevfs verify`: what it finds in damaged replicas, and that it finds nothing in sound ones."""

from __future__ import annotations

import resource
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from litevfs.files.fetch import Fetcher
from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import CHECKSUM_FLAG, HEADER_FLAG_NO_CHECKSUM, Header
from litevfs.operations.target import temporary_target
from litevfs.operations.verify import check_files
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.testing.faulty import faulty_replica
from tests.primary import Primary
from tests.scripted import Script

PAGE_SIZE = 4096


def level_0(replica: Path, txid: int) -> Path:
    return replica / "ltx" / "0" / f"{txid:016x}-{txid:016x}.ltx"


def problems(result: Any) -> list[dict[str, Any]]:
    report = result.json
    assert report["ok"] == (not report["problems"])
    assert result.code == (1 if report["problems"] else 0)
    return report["problems"]  # type: ignore[no-any-return]


def test_a_sound_replica_has_no_problems(run: Callable[..., Any], orders: str):
    result = run("verify", orders, "--json")
    assert problems(result) == []
    report = result.json
    assert (report["files"], report["integrity_check"], report["notes"]) == (12, "ok", [])
    assert (report["newest"]["txid"], report["newest"]["commit"]) == ("000000000000000c", 259)
    out = run("verify", orders).out
    assert "integrity check: ok\n" in out
    assert out.endswith("no problems found\n")


@pytest.mark.parametrize("place", [0, 20, 60, 150, 20_000, -60_000, -20, -1])
def test_a_flipped_bit_anywhere_is_found_and_located(run: Callable[..., Any], orders_copy: Path, place: int):
    path = level_0(orders_copy, 9)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    found = problems(run("verify", orders_copy, "--json"))
    assert {"level": 0, "min_txid": f"{9:016x}", "max_txid": f"{9:016x}", "key": str(path)}.items() <= found[0].items()
    assert found[1]["message"] == f"the newest state needs a damaged file; sound files reach TXID {8:016x}"
    assert len(found) == 2


def test_what_is_readable_is_still_checked(run: Callable[..., Any], orders_copy: Path):
    level_0(orders_copy, 9).write_bytes(b"")
    result = run("verify", orders_copy)
    assert result.code == 1
    assert f"newest state: TXID {8:016x}" in result.out
    assert "integrity check: ok" in result.out
    assert f"problem: LTX file ends within its header (level 0, TXIDs {9:016x}-{9:016x}, " in result.out
    assert result.out.endswith("2 problems found\n")


@pytest.mark.parametrize("size", [50, 100, 500, -16, -1])
def test_a_truncated_file_is_found(run: Callable[..., Any], orders_copy: Path, size: int):
    path = level_0(orders_copy, 12)
    path.write_bytes(path.read_bytes()[:size])
    assert "LTX file ends within its" in problems(run("verify", orders_copy, "--json"))[0]["message"]


def test_a_file_that_goes_on_is_found(run: Callable[..., Any], orders_copy: Path):
    with level_0(orders_copy, 12).open("ab") as file:
        file.write(b"\0")
    assert "goes on" in problems(run("verify", orders_copy, "--json"))[0]["message"]


def test_a_missing_file_is_a_gap(run: Callable[..., Any], orders_copy: Path):
    level_0(orders_copy, 5).unlink()
    level_0(orders_copy, 6).unlink()
    result = run("verify", orders_copy, "--json")
    (gap,) = problems(result)
    assert (gap["min_txid"], gap["max_txid"]) == (f"{5:016x}", f"{6:016x}")
    assert result.json["newest"]["txid"] == f"{4:016x}"
    assert result.json["notes"] == [f"level 0 has no file for TXIDs {5:016x}-{6:016x}"]


def test_a_missing_first_file_leaves_no_state(run: Callable[..., Any], orders_copy: Path):
    level_0(orders_copy, 1).unlink()
    result = run("verify", orders_copy, "--json")
    (gap,) = problems(result)
    assert "first TXIDs are missing" in gap["message"]
    assert (result.json["newest"], result.json["integrity_check"]) == (None, None)


def test_an_empty_replica_is_a_problem(run: Callable[..., Any], tmp_path: Path):
    assert problems(run("verify", tmp_path, "--json"))[0]["message"] == "the replica holds no LTX files"


def test_a_wrong_name_is_found(run: Callable[..., Any], orders_copy: Path):
    level_0(orders_copy, 12).rename(level_0(orders_copy, 13))
    found = problems(run("verify", orders_copy, "--json"))
    assert f"the header says TXIDs {12:016x}-{12:016x}, the name says otherwise" in [one["message"] for one in found]


def test_a_snapshot_level_file_that_is_none_is_found(run: Callable[..., Any], orders_copy: Path):
    folder = orders_copy / "ltx" / "9"
    folder.mkdir()
    (folder / level_0(orders_copy, 12).name).write_bytes(level_0(orders_copy, 12).read_bytes())
    (found,) = problems(run("verify", orders_copy, "--json"))
    assert (found["level"], found["message"]) == (9, "a file on the snapshot level that is no snapshot")


def test_a_hole_that_another_level_covers_is_a_note(run: Callable[..., Any], tmp_path: Path):
    write(tmp_path, 0, header(1, 1), {1: b"a"})
    write(tmp_path, 1, header(1, 3), {1: b"b"})
    write(tmp_path, 0, header(4, 4), {1: b"c"})
    result = run("verify", tmp_path, "--json", "--no-integrity-check")
    assert problems(result) == []
    assert result.json["notes"] == [f"level 0 has no file for TXIDs {2:016x}-{3:016x}"]
    assert result.json["integrity_check"] is None


def test_a_new_page_size_is_sound_with_all_pages_and_found_without(run: Callable[..., Any], tmp_path: Path):
    write(tmp_path, 0, header(1, 1, page_size=512), {1: b"a"}, page_size=512)
    write(tmp_path, 0, header(2, 2), {1: b"b"})
    assert problems(run("verify", tmp_path, "--json", "--no-integrity-check")) == []
    write(tmp_path, 0, header(3, 3, page_size=512, commit=2), {2: b"c"}, page_size=512)
    found, *_ = problems(run("verify", tmp_path, "--json", "--no-integrity-check"))
    assert f"page size changes from {PAGE_SIZE} to 512" in found["message"]


def test_two_page_sizes_of_one_txid_are_found(run: Callable[..., Any], tmp_path: Path):
    write(tmp_path, 0, header(1, 1, page_size=512), {1: b"a"}, page_size=512)
    write(tmp_path, 1, header(1, 1), {1: b"b"})
    (found,) = problems(run("verify", tmp_path, "--json", "--no-integrity-check"))
    assert f"that of another file with the same newest TXID is {512}" in found["message"]


def test_a_broken_chain_of_database_checksums_is_found(run: Callable[..., Any], tmp_path: Path):
    from litevfs.ltx.checksum import database_checksum

    page = b"a".ljust(PAGE_SIZE, b"\0")
    after_1 = database_checksum([(1, page)])
    write(tmp_path, 0, header(1, 1, flags=0), {1: b"a"}, post=after_1)
    wrong = (after_1 ^ 1) | CHECKSUM_FLAG
    write(tmp_path, 0, header(2, 2, flags=0, pre_apply_checksum=wrong), {1: b"b"}, post=CHECKSUM_FLAG | 7)
    (found,) = problems(run("verify", tmp_path, "--json", "--no-integrity-check"))
    assert found["min_txid"] == f"{2:016x}"
    assert f"{wrong:016x}" in found["message"]
    assert f"{after_1:016x}" in found["message"]


def test_a_database_that_sqlite_finds_damaged_is_a_problem(run: Callable[..., Any], tmp_path: Path):
    database = tmp_path / "app.db"
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("CREATE TABLE t(a); CREATE INDEX i ON t(a); INSERT INTO t VALUES (1), (2), (3)")
    data = bytearray(database.read_bytes())
    pages = [bytes(data[i : i + PAGE_SIZE]) for i in range(0, len(data), PAGE_SIZE)]
    index_page = pages[2]
    pages[2] = index_page[:3] + (2).to_bytes(2, "big") + index_page[5:]  # one cell fewer than the table has rows
    replica = tmp_path / "replica"
    write(replica, 0, header(1, 1, commit=len(pages)), dict(enumerate(pages, 1)))
    result = run("verify", replica, "--json")
    assert result.json["integrity_check"] == "failed"
    assert any("wrong # of entries in index i" in one["message"] for one in problems(result))
    assert run("verify", replica, "--no-integrity-check").code == 0


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    """The file's pages are 48 MB; compressed, a thousandth of that, so every piece fed is the worst case."""
    count = 48_000_000 // 65_536
    pages = dict.fromkeys(range(1, count + 1), b"")
    write(tmp_path, 9, header(1, 1, page_size=65_536, commit=count), pages, page_size=65_536)
    client = FileReplicaClient(tmp_path)
    with closing(Fetcher(client, read_timeout_s=5)) as fetcher:
        files = client.list_files(9)
        tracemalloc.start()
        try:
            (check,) = check_files(fetcher, files)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert check.problem is None
    assert peak < 24_000_000


# --- remote replicas: read once ---------------------------------------------------------------------------------------


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Script, int]]:
    """A remote replica of two snapshots and what came after them, and its size, bytes; nothing is left behind."""
    rooms = tmp_path / "temporary"
    rooms.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(rooms))
    with Script(block_size=1 << 16) as script, Primary(script.writer) as primary:
        primary.run(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, data BLOB); CREATE INDEX i ON t(data);"
            "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 800)"
            "INSERT INTO t SELECT i, randomblob(2500) FROM n"
        )
        primary.compact(9, 1, 1)
        for i in range(40):
            primary.commit("UPDATE t SET data = ? WHERE id = ?", (bytes([i]) * 900, 20 * i + 1))
        primary.compact(9, 1, 21)
        files = [file for level in range(10) for file in script.writer.list_files(level)]
        script.clear()
        yield script, sum(file.size for file in files)
    assert list(rooms.iterdir()) == []


@pytest.mark.slow
def test_each_byte_of_a_remote_replica_is_read_once(run: Callable[..., Any], remote: tuple[Script, int]):
    script, total = remote
    result = run("verify", script.url, "--json")
    assert problems(result) == []
    assert (result.json["integrity_check"], result.json["bytes"]) == ("ok", total)
    assert sum(size or 0 for _, _, size in script.reads) == total
    assert sum(script.lists.values()) == 10


@pytest.mark.slow
def test_where_there_is_no_room_for_the_database_it_is_checked_in_place(
    run: Callable[..., Any], remote: tuple[Script, int], monkeypatch: pytest.MonkeyPatch
):
    script, total = remote
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        result = run("verify", script.url, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (problems(result), result.json["bytes"], result.json["integrity_check"]) == ([], total, "ok")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    result = run("verify", script.url, "--json")
    assert (problems(result), result.json["bytes"], result.json["integrity_check"]) == ([], total, "ok")


@pytest.mark.slow
def test_what_a_killed_run_left_in_the_temporary_folder_goes(run: Callable[..., Any], remote: tuple[Script, int]):
    script, _ = remote
    temporary_target().temp_path.write_bytes(b"half of a state")
    assert run("verify", script.url).code == 0


def test_others_cannot_read_what_is_put_into_the_temporary_folder():
    with temporary_target() as target:
        assert target.temp_path.stat().st_mode & 0o777 == 0o600


def _flip_in_snapshot(replica: Path) -> None:
    path = level_0(replica, 1)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


def _lose_pages(replica: Path) -> None:
    head = header(13, 13, commit=400)
    write(replica, 0, head, {1: b"x", 400: b"y"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda replica: None,
        _flip_in_snapshot,
        _lose_pages,
        lambda replica: level_0(replica, 9).write_bytes(b""),
        lambda replica: level_0(replica, 12).write_bytes(level_0(replica, 12).read_bytes()[:-16]),
        lambda replica: level_0(replica, 5).unlink(),
        lambda replica: level_0(replica, 1).unlink(),
        lambda replica: level_0(replica, 12).rename(level_0(replica, 13)),
        lambda replica: write(replica, 0, header(13, 13, page_size=512), {1: b"a"}, page_size=512),
    ],
)
def test_a_remote_replica_is_told_to_be_as_good_as_the_same_one_in_a_folder(
    run: Callable[..., Any], orders_copy: Path, damage: Callable[[Path], None]
):
    damage(orders_copy)
    local = run("verify", orders_copy, "--json")
    with faulty_replica(str(orders_copy), block_size=1 << 16) as faults:
        remote = run("verify", faults.url, "--json")
    report = remote.json | {"url": local.json["url"]}
    assert (remote.code, report) == (local.code, local.json)


@pytest.mark.s3
def test_a_replica_on_s3_is_verified_the_same(
    run: Callable[..., Any], orders: str, s3_url: Callable[[], str], s3_client: Any
):
    from urllib.parse import urlsplit

    url = s3_url()
    parts = urlsplit(url)
    for path in sorted(Path(orders, "ltx", "0").iterdir()):
        key = f"{parts.path.strip('/')}/0000/{path.name}"
        s3_client.put_object(Bucket=parts.netloc, Key=key, Body=path.read_bytes())
    result = run("verify", url, "--json")
    assert (problems(result), result.json["files"], result.json["integrity_check"]) == ([], 12, "ok")
    key = f"{parts.path.strip('/')}/0000/{9:016x}-{9:016x}.ltx"
    s3_client.delete_object(Bucket=parts.netloc, Key=key)
    (gap,) = problems(run("verify", url, "--json"))
    assert gap["min_txid"] == gap["max_txid"] == f"{9:016x}"


def header(min_txid: int, max_txid: int, **fields: Any) -> Header:
    values = {"page_size": PAGE_SIZE, "commit": 1, "timestamp_ms": 1000 * max_txid, "flags": HEADER_FLAG_NO_CHECKSUM}
    return Header(min_txid=min_txid, max_txid=max_txid, **(values | fields))


def write(
    replica: Path, level: int, head: Header, pages: dict[int, bytes], *, page_size: int = PAGE_SIZE, post: int = 0
) -> None:
    folder = replica / "ltx" / str(level)
    folder.mkdir(parents=True, exist_ok=True)
    content = ((pgno, page.ljust(page_size, b"\0")) for pgno, page in pages.items())
    name = f"{head.min_txid:016x}-{head.max_txid:016x}.ltx"
    (folder / name).write_bytes(encode_file(head, content, post))

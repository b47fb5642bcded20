"""A small LTX file that lies in the record of the state until it is uploaded: it is never lost, and never two files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from litevfs.errors import TransientStorageError
from litevfs.replicate import Replicator
from litevfs.replicate.slots import SlotFile
from tests.replicate.support import (
    LARGE,
    assert_replicated,
    failing_client,
    files_of,
    refuse_writes,
)


@pytest.fixture
def folder(app) -> Path:
    return app.path.with_name(f".{app.path.name}-litevfs")


def files_that_wait(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.ltx"))


def file_in_record(folder: Path) -> object:
    return (SlotFile(folder / "state.json").read() or {}).get("file")


def capture_while_uploads_fail(app, replicator: Replicator, client: Any, sizes: list[int]) -> None:
    refuse_writes(client)
    for size in sizes:
        app.insert(size=size)
        with pytest.raises(TransientStorageError):
            replicator.sync(timeout_s=0)
    client.faults.clear()


def name(txid: int) -> str:
    return f"{txid:016x}-{txid:016x}.ltx"


@pytest.mark.parametrize("has_ended", [False, True])
@pytest.mark.parametrize(
    ("sizes", "files"),
    [([100], []), ([100, 100, 100], [2, 3]), ([LARGE, 100], [2]), ([100, LARGE], [2, 3]), ([100, LARGE, 100], [2, 3])],
)
def test_small_and_large_files_that_wait_are_uploaded_in_order(
    app, tmp_path: Path, folder: Path, sizes: list[int], files: list[int], *, has_ended: bool
):
    client = failing_client(tmp_path / "replica")
    replicator = Replicator(app.path, client)
    replicator.sync()
    capture_while_uploads_fail(app, replicator, client, sizes)
    assert files_that_wait(folder) == [name(txid) for txid in files]
    assert replicator.status.pending_files == len(sizes)
    if has_ended:
        replicator.close()
        replicator = Replicator(app.path, client)
    assert replicator.sync() == 1 + len(sizes)
    assert replicator.status.snapshots == (0 if has_ended else 1)
    assert replicator.status.pending_files == 0
    assert files_that_wait(folder) == []
    replicator.close()
    assert_replicated(client, app.path)
    client.close()


def test_a_clean_end_leaves_no_file_to_upload_again(app, client, folder: Path, monkeypatch: pytest.MonkeyPatch):
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert()
        replicator.sync()
        assert file_in_record(folder) is not None
    assert file_in_record(folder) is None
    monkeypatch.setattr(client, "write", None)
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 2


@pytest.mark.slow
def test_a_forked_process_that_closes_its_copy_leaves_the_record_alone(app, folder: Path, tmp_path: Path):
    program = """if True:
        import os, sys
        import apsw
        from litevfs.replicate import Replicator
        path, url = sys.argv[1:]
        replicator = Replicator(path, url)
        replicator.sync()
        apsw.Connection(path).execute("INSERT INTO t (data) VALUES (1)")
        replicator.sync()
        child = os.fork()
        if child == 0:
            replicator.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        os._exit(0)
    """
    command = [sys.executable, "-c", program, str(app.path), f"file://{tmp_path}/replica"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert file_in_record(folder) is not None


def test_a_file_that_was_uploaded_before_a_kill_is_known_again(app, client, folder: Path, tmp_path: Path):
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert()
        replicator.sync()
        shutil.copytree(folder, tmp_path / "killed")
    shutil.rmtree(folder)
    (tmp_path / "killed").rename(folder)
    with Replicator(app.path, client) as replicator:
        assert files_that_wait(folder) == [name(2)]
        assert replicator.sync() == 2
        assert files_that_wait(folder) == []
        app.insert()
        assert replicator.sync() == 3
        assert replicator.status.snapshots == 0
    assert_replicated(client, app.path)


def test_a_file_is_put_down_while_it_is_uploaded_and_removed_afterwards(
    app, client, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    replicator = Replicator(app.path, client)
    replicator.sync()
    write, waited = client.write, []

    def write_during_a_capture(*args: Any, **options: Any) -> Any:
        if not waited:
            waited.append(name(2))
            app.insert()
            replicator.capturing.step(time.monotonic() + 20)
            assert files_that_wait(folder) == waited
        return write(*args, **options)

    monkeypatch.setattr(client, "write", write_during_a_capture)
    app.insert()
    assert replicator.sync() == 2
    assert files_that_wait(folder) == []
    assert replicator.status.pending_files == 1
    assert replicator.sync() == 3
    assert waited == [name(2)]
    assert replicator.status.snapshots == 1
    replicator.close()
    assert [file.header.max_txid for file in files_of(client)] == [1, 2, 3]
    assert_replicated(client, app.path)


def test_the_whole_database_is_never_in_the_record(app, client, folder: Path):
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        assert file_in_record(folder) is None
        replicator.request_snapshot()
        app.insert()
        replicator.sync()
        assert file_in_record(folder) is None
        assert len(client.list_files(9)) == 1

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from litevfs.errors import (
    StorageClosedError,
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    TransientStorageError,
)
from litevfs.replica_clients import descriptors
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.testing.client_conformance import ReplicaClientConformance
from tests.replica_clients.store_replicas import FolderOfFiles

NAME = "0000000000000001-0000000000000001.ltx"


class FileReplica(FolderOfFiles):
    def __init__(self, root: Path) -> None:
        self.root = self.folder = root
        root.mkdir()

    def new_client(self) -> FileReplicaClient:
        return FileReplicaClient(self.root)

    def put(self, level: int, name: str, data: bytes) -> None:
        folder = self.root / "ltx" / str(level)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "being-written").write_bytes(data)
        (folder / "being-written").rename(folder / name)


class TestFileReplicaClient(ReplicaClientConformance):
    @pytest.fixture
    def replica(self, tmp_path: Path) -> FileReplica:
        return FileReplica(tmp_path / "a replica % with # and ü")


@pytest.fixture
def client(tmp_path: Path):
    client = FileReplicaClient(tmp_path / "replica")
    yield client
    client.close()


def test_reads_the_layout_litestream_writes():
    client = FileReplicaClient(Path(__file__).parents[1] / "fixtures" / "orders" / "replica")
    files = client.list_files(0)
    assert [file.max_txid for file in files] == list(range(1, 13))
    assert all(client.read(file, 0, 4) == b"LTX1" for file in files)
    client.close()


def test_a_missing_root_is_not_an_empty_replica(tmp_path: Path, client: FileReplicaClient):
    with pytest.raises(StorageNotFoundError, match="no such replica folder"):
        client.list_files(0)
    (tmp_path / "replica").mkdir()
    assert client.list_files(0) == []


def test_a_relative_root_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    client = FileReplicaClient("replica")
    monkeypatch.chdir("/")
    client.write(0, 1, 1, b"x", 1)
    assert (tmp_path / "replica" / "ltx" / "0" / NAME).read_bytes() == b"x"
    client.close()


def test_modified_ms_is_the_mtime(client: FileReplicaClient):
    file = client.write(0, 1, 1, b"x", 1_700_000_000_123)
    assert file.modified_ms == client.list_files(0)[0].modified_ms == 1_700_000_000_123


def test_evicted_descriptors_stay_good_for_the_reads_that_use_them(tmp_path: Path):
    """Two descriptors for twenty files, read from eight threads: each read must come from its own file."""
    client = FileReplicaClient(tmp_path, max_open_files=2)
    contents = {txid: bytes([txid]) * 3000 for txid in range(1, 21)}
    files = [client.write(0, txid, txid, data, 1) for txid, data in contents.items()]

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(2000):
            file = rng.choice(files)
            offset = rng.randrange(2500)
            assert client.read(file, offset, 500) == contents[file.min_txid][offset : offset + 500]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert len(open_ltx_files(tmp_path)) <= 2
    client.close()
    assert open_ltx_files(tmp_path) == []


def test_keeps_the_descriptors_that_are_read_again(tmp_path: Path):
    client = FileReplicaClient(tmp_path, max_open_files=3)
    hot = client.write(0, 1, 1, b"hot", 1)
    client.read(hot)
    for txid in range(2, 12):
        client.read(client.write(0, txid, txid, b"cold", 1))
        client.read(hot)
    assert any(target.endswith(NAME) for target in open_ltx_files(tmp_path))
    client.close()


def test_the_clients_of_a_process_keep_a_bounded_number_of_descriptors(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(descriptors, "KEPT_IN_ALL", 100)
    client = FileReplicaClient(tmp_path)
    files = [client.write(0, txid, txid, bytes([txid]) * 100, 1) for txid in range(1, 41)]
    client.close()
    clients = [FileReplicaClient(tmp_path) for _ in range(20)]
    for client in clients:
        for file in files:
            assert client.read(file, 50, 1) == bytes([file.min_txid])
    kept = len(open_ltx_files(tmp_path))
    assert 20 * descriptors.KEPT_OF_MANY <= kept <= 100 + 20 * descriptors.KEPT_OF_MANY
    for client in clients:
        client.close()
    assert open_ltx_files(tmp_path) == []
    client = FileReplicaClient(tmp_path)
    for file in files:  # there is room again
        assert client.read(file, 50, 1) == bytes([file.min_txid])
    assert len(open_ltx_files(tmp_path)) == len(files)
    client.close()


FEW_DESCRIPTORS = """
    import os, resource, sys
    from litevfs.replica_clients.file import FileReplicaClient

    client = FileReplicaClient(sys.argv[1])
    files = client.list_files(0)
    limit = len(os.listdir("/dev/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    for _ in range(3):
        for file in files:
            assert client.read(file) == bytes([file.min_txid]) * 100
        assert client.list_files(0) == files
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]  # what the application opens
    assert client.list_files(0) == files
    print("all read")
"""


def test_descriptors_that_are_only_kept_open_never_keep_anything_from_being_opened(tmp_path: Path):
    """More files than the process may have open; then the application needs some of what is left."""
    client = FileReplicaClient(tmp_path)
    for txid in range(1, 31):
        client.write(0, txid, txid, bytes([txid]) * 100, 1)
    client.close()
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FEW_DESCRIPTORS), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (run.stdout, run.returncode) == ("all read\n", 0), run.stderr


def test_close_during_reads_is_safe(tmp_path: Path):
    client = FileReplicaClient(tmp_path)
    file = client.write(0, 1, 1, b"x" * 100_000, 1)
    started = threading.Barrier(5)

    def read_until_closed() -> None:
        started.wait(10)
        with pytest.raises(StorageClosedError):  # noqa: PT012 - which of the reads it is does not matter
            while True:
                assert client.read(file, 0, 100_000) == b"x" * 100_000

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_until_closed) for _ in range(4)]
        started.wait(10)
        client.close()
        for reader in readers:
            reader.result(10)
    assert open_ltx_files(tmp_path) == []


def test_a_deleted_file_is_still_read_through_its_open_descriptor_but_not_reopened(client: FileReplicaClient):
    file = client.write(0, 1, 1, b"content", 1)
    assert client.read(file) == b"content"
    Path(client.key(file)).unlink()
    assert client.read(file) == b"content"
    client.delete([file])
    with pytest.raises(StorageNotFoundError):
        client.read(file)


def test_a_size_that_lies_allocates_nothing(client: FileReplicaClient):
    file = client.write(0, 1, 1, b"content", 1)
    assert client.read(file, 2, 2**62) == b"ntent"
    assert client.read(file, 2**70, 5) == b""


def test_skips_folders_and_fifos_with_the_name_of_a_file(tmp_path: Path, client: FileReplicaClient):
    folder = tmp_path / "replica" / "ltx" / "0"
    (folder / NAME).mkdir(parents=True)
    os.mkfifo(folder / NAME.replace("1", "2"))
    assert client.list_files(0) == []
    for txid in (1, 2):
        with pytest.raises(StorageError, match="not a regular file"):
            client.read(LTXFileInfo(0, txid, txid, 10, 0), 0, 10)


@pytest.mark.slow
@pytest.mark.plan("D01")
def test_leftovers_of_a_killed_writer_are_not_seen_and_go_with_the_next_write(tmp_path: Path):
    """The writer dies by SIGKILL in the middle of an upload; its temporary file may not be seen, then has to go."""
    script = (
        "import os, signal, sys\n"
        "from litevfs.replica_clients.file import FileReplicaClient\n"
        "class Dying:\n"
        "    def __init__(self): self.parts = [b'a' * 5000]\n"
        "    def read(self, size):\n"
        "        return self.parts.pop() if self.parts else os.kill(os.getpid(), signal.SIGKILL)\n"
        "FileReplicaClient(sys.argv[1]).write(0, 1, 1, Dying(), 1)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], check=False, timeout=60)
    assert killed.returncode == -9
    folder = tmp_path / "ltx" / "0"
    assert [path.suffix for path in folder.iterdir()] == [".tmp"]
    client = FileReplicaClient(tmp_path)
    assert client.list_files(0) == []
    client.write(0, 2, 2, b"x", 1)
    assert [path.name for path in folder.iterdir()] == [NAME.replace("1", "2")]
    client.close()


def test_temporary_files_of_living_writers_and_of_others_stay(tmp_path: Path):
    folder = tmp_path / "ltx" / "0"
    folder.mkdir(parents=True)
    foreign = folder / f"{NAME}.tmp"  # as Litestream calls its own
    foreign.write_bytes(b"being written by Litestream")
    go_on, reached = threading.Event(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.parts = [b"", b"b" * 10]

        def read(self, size: int) -> bytes:
            if len(self.parts) == 1:
                reached.set()
                assert go_on.wait(30)
            return self.parts.pop()

    writer, other = FileReplicaClient(tmp_path), FileReplicaClient(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        try:
            slow = pool.submit(writer.write, 0, 5, 5, Slow(), 1)
            assert reached.wait(30)
            other.write(0, 6, 6, b"x", 1)
        finally:
            go_on.set()
        slow.result(30)
    assert foreign.exists()
    assert [file.min_txid for file in other.list_files(0)] == [5, 6]
    assert len(list(folder.iterdir())) == 3
    writer.close()
    other.close()


def test_a_temporary_file_that_another_writer_sweeps_before_it_is_locked_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The other one takes it for a left-over: it has locked it, and deletes it while this one writes."""
    open_file, swept = os.open, []

    def open_and_sweep(path: str, flags: int, *mode: int) -> int:
        fd = open_file(path, flags, *mode)
        if flags & os.O_EXCL and not swept:
            swept.append((path, open_file(path, os.O_RDONLY)))
            fcntl.flock(swept[0][1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    class Deleted:
        def __init__(self) -> None:
            self.parts = [b"", b"content"]

        def read(self, size: int) -> bytes:
            Path(swept[0][0]).unlink(missing_ok=True)
            return self.parts.pop()

    monkeypatch.setattr(os, "open", open_and_sweep)
    client = FileReplicaClient(tmp_path)
    file = client.write(0, 1, 1, Deleted(), 1)
    assert client.read(file) == b"content"
    os.close(swept[0][1])
    client.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_says_so(tmp_path: Path, client: FileReplicaClient):
    (tmp_path / "replica").mkdir(mode=0o500)
    with pytest.raises(StoragePermissionError):
        client.write(0, 1, 1, b"x", 1)


def test_a_root_that_is_a_file_is_an_error(tmp_path: Path, client: FileReplicaClient):
    (tmp_path / "replica").write_bytes(b"")
    with pytest.raises(StorageNotFoundError):
        client.list_files(0)
    with pytest.raises(StorageError):
        client.write(0, 1, 1, b"x", 1)


def test_too_many_open_files_may_pass(tmp_path: Path, client: FileReplicaClient):
    resource = pytest.importorskip("resource")
    file = client.write(0, 1, 1, b"x", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(TransientStorageError, match="ulimit"):
            client.read(file)
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert client.read(file) == b"x"


def open_ltx_files(root: Path) -> list[str]:
    """What /proc says this process has open below `root`."""
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(str(root)) and ".ltx" in target:
            targets.append(target)
    return targets

"""The folder of blocks by itself: right bytes or none, under its limit, whatever happens to the folder."""

from __future__ import annotations

import errno
import logging
import os
import random
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from litevfs.errors import OptionError
from litevfs.files.disk_cache import DiskCache
from litevfs.replica_clients.base import LTXFileInfo

URL = "s3://secret-bucket/secret-path"
BLOCK = 4096 - 48  # bytes: with what is put before it, one unit of what a file system gives out
ON_DISK = 4096
FILE = LTXFileInfo(9, 1, 0xABC, 100_000 * BLOCK + 17, 1_767_225_600_000, '"an/etag"')


needs_zstandard = pytest.mark.skipif(
    find_spec("zstandard") is None, reason="needs the extra `compress` (pip install 'litevfs[compress]')"
)


def content(block: int, size: int = BLOCK) -> bytes:
    """What block `block` of the file holds."""
    return random.Random(block).randbytes(size)


def make(
    folder: Path, *, limit: int = 1 << 24, url: str = URL, block_size: int = BLOCK, compresses: bool = False
) -> DiskCache:
    cache = DiskCache(str(folder), limit, url=url, block_size=block_size, compresses=compresses)
    cache.prepare()
    return cache


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def bytes_on_disk(folder: Path) -> int:
    """As `du` counts it, folders left out; files that go meanwhile count nothing."""
    total = 0
    for path in files_in(folder):
        try:
            total += -(-path.stat().st_size // 4096) * 4096
        except FileNotFoundError:
            continue
    return total


def age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment), follow_symlinks=False)


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.plan("K02")
def test_a_block_comes_back_after_a_restart(tmp_path):
    last = 100_000  # a short one
    cache = make(tmp_path)
    cache.put(FILE, 3, content(3))
    cache.put(FILE, last, content(last, 17))
    again = make(tmp_path)
    assert again.get(FILE, 3) == content(3)
    assert again.get(FILE, last) == content(last, 17)
    assert again.get(FILE, 4) is None
    assert again.has(FILE, 3)
    assert not again.has(FILE, 4)
    assert (again.counters.hits, again.counters.misses, again.counters.damaged) == (2, 1, 0)


@pytest.mark.parametrize(
    "other",
    [
        replace(FILE, level=0),
        replace(FILE, min_txid=2),
        replace(FILE, max_txid=0xABD),
        replace(FILE, size=FILE.size + 1),
        replace(FILE, modified_ms=FILE.modified_ms + 1),
        replace(FILE, etag='"another"'),
        replace(FILE, etag=""),
    ],
    ids=["level", "min_txid", "max_txid", "size", "modified_ms", "etag", "no etag"],
)
def test_a_block_of_another_file_is_not_found(tmp_path, other):
    cache = make(tmp_path)
    cache.put(FILE, 3, content(3))
    assert cache.get(other, 3) is None


def test_a_block_of_another_replica_or_block_size_is_not_found(tmp_path):
    make(tmp_path).put(FILE, 0, content(0))
    assert make(tmp_path, url=URL + "x").get(FILE, 0) is None
    assert make(tmp_path, block_size=BLOCK // 2).get(FILE, 0) is None
    assert make(tmp_path).get(FILE, 0) == content(0)


def test_a_block_of_the_wrong_length_is_not_kept(tmp_path):
    cache = make(tmp_path)
    cache.put(FILE, 0, content(0)[:-1])
    cache.put(FILE, 100_001, b"past the end")
    assert files_in(tmp_path) == []


def test_a_dropped_block_is_gone(tmp_path):
    cache = make(tmp_path)
    cache.put(FILE, 0, content(0))
    cache.drop(FILE, 0)
    cache.drop(FILE, 1)
    assert cache.get(FILE, 0) is None


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_is_its_owners_alone(tmp_path):
    folder = tmp_path / "deep" / "folder"
    cache = make(folder)
    cache.put(FILE, 0, content(0))
    (file,) = files_in(folder)
    assert [path.stat().st_mode & 0o777 for path in (folder, file.parent, file)] == [0o700, 0o700, 0o600]


@pytest.mark.plan("K09")
def test_neither_url_nor_etag_is_written_to_disk(tmp_path):
    cache = make(tmp_path, url="s3://bucket/path?sse=topsecret")
    cache.put(FILE, 0, bytes(BLOCK))
    (path,) = files_in(tmp_path)
    for word in (b"topsecret", b"bucket", b"etag"):
        assert word not in str(path.relative_to(tmp_path)).encode() + path.read_bytes()


@pytest.mark.plan("K01")
@pytest.mark.parametrize("name", ["a file", "a file/below", "x" * 300, "nul\0", "/proc/litevfs"])
def test_a_folder_that_cannot_be_is_refused_by_name(tmp_path, name):
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(OptionError, match=r"cache_dir .*hint: name a folder") as caught:
        make(tmp_path / name)
    assert name in str(caught.value)
    assert (tmp_path / "a file").read_text() == "mine"


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EIO"])
@pytest.mark.parametrize("call", ["makedirs", "write"])
def test_a_folder_that_takes_no_block_now_is_read_with_one_warning(tmp_path, monkeypatch, caplog, call, code):
    make(tmp_path).put(FILE, 0, content(0))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(os, call, refuse)
    cache = make(tmp_path)
    assert not cache.is_writing
    cache.put(FILE, 1, content(1))
    assert cache.get(FILE, 0) == content(0)
    assert cache.get(FILE, 1) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.strerror(getattr(errno, code)) in caplog.text


def test_a_folder_that_was_deleted_is_made_again(tmp_path):
    folder = tmp_path / "folder"
    cache = make(folder)
    cache.put(FILE, 0, content(0))
    folder.rename(tmp_path / "moved")
    assert cache.get(FILE, 0) is None
    cache.put(FILE, 0, content(0))
    assert cache.get(FILE, 0) == content(0)
    assert cache.is_writing


def test_a_folder_that_fails_later_is_reported_once_and_still_read(tmp_path, caplog):
    cache = make(tmp_path)
    cache.put(FILE, 0, content(0))
    for shard in "0123456789abcdef":
        path = tmp_path / shard
        if not any(path.glob("*.block")):
            if path.exists():
                path.rmdir()
            path.write_text("in the way")
    with caplog.at_level(logging.WARNING, "litevfs.files.disk_cache"):
        for block in range(1, 50):
            cache.put(FILE, block, content(block))
            assert cache.get(FILE, block) in (None, content(block))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.strerror(errno.ENOTDIR) in caplog.text
    assert not cache.is_writing
    assert cache.get(FILE, 0) == content(0)


_ON_A_FULL_DISK = """
    import logging, os, sys
    from tests.files.test_disk_cache import BLOCK, FILE, content, make
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
    cache = make(sys.argv[1])
    for block in range(200):
        cache.put(FILE, block, content(block))
    kept = [block for block in range(200) if cache.get(FILE, block) is not None]
    assert all(cache.get(FILE, block) == content(block) for block in kept)
    print(len(kept) > 10, cache.is_writing, cache.counters.damaged)
    assert not [name for _, _, names in os.walk(sys.argv[1]) for name in names if name.endswith(".tmp")]
    with open(sys.argv[1] + "/filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(512)):
                pass
        except OSError:
            pass
    cache = make(sys.argv[1])
    print(cache.is_writing, all(cache.get(FILE, block) == content(block) for block in kept))
"""


@pytest.mark.slow
def test_a_full_disk_ends_writing_with_one_warning_and_is_still_read_when_opened_again(tmp_path):
    mount = 'mount -t tmpfs -o size=400k none "$1" && shift && exec "$@"'
    in_namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    try:
        subprocess.run([*in_namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of its own size cannot be mounted here")
    script = [sys.executable, "-c", textwrap.dedent(_ON_A_FULL_DISK), str(tmp_path)]
    done = subprocess.run([*in_namespace, *script], text=True, capture_output=True, timeout=60)
    warning, kept, again, read = done.stdout.splitlines() or [done.stderr, "", "", ""]
    no_space = os.strerror(errno.ENOSPC)
    assert warning.startswith(f"WARNING cache_dir {tmp_path} takes no more blocks")
    assert no_space in warning
    assert kept == "True False 0"
    assert again == warning
    assert read == "False True"


_WHERE_FILES_ARE_CUT_SHORT = """
    import os, resource, sys
    from tests.files.test_disk_cache import FILE, content, make
    cache = make(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    cache.put(FILE, 0, content(0))
    print(cache.is_writing, [name for _, _, names in os.walk(sys.argv[1]) for name in names])
"""


@pytest.mark.slow
def test_a_block_that_is_written_in_part_is_not_kept(tmp_path):
    script = [sys.executable, "-c", textwrap.dedent(_WHERE_FILES_ARE_CUT_SHORT), str(tmp_path)]
    done = subprocess.run(script, text=True, capture_output=True, timeout=60)
    assert (done.stdout, done.returncode) == ("False []\n", 0), done.stderr


def test_a_subfolder_that_vanishes_again_ends_no_writing(tmp_path):
    cache = make(tmp_path)
    for shard in tmp_path.iterdir():
        shard.rmdir()
    for digit in "0123456789abcdef":
        (tmp_path / digit).symlink_to(tmp_path / "nowhere" / digit)
    for block in range(20):
        cache.put(FILE, block, content(block))
        assert cache.get(FILE, block) is None
    assert cache.is_writing
    for digit in "0123456789abcdef":
        (tmp_path / digit).unlink()
    cache.put(FILE, 0, content(0))
    assert cache.get(FILE, 0) == content(0)


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGES = {
    "empty": lambda data: b"",
    "torn in the header": lambda data: data[:20],
    "torn in the block": lambda data: data[:-100],
    "one byte short": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "end never written": lambda data: data[:2000] + bytes(len(data) - 2000),
    "start never written": lambda data: bytes(2000) + data[2000:],
    "all zero": lambda data: bytes(len(data)),
    "another magic": lambda data: b"LVFSBLK9" + data[8:],
}


@pytest.mark.plan("D01")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_block_is_dropped_and_can_be_kept_again(tmp_path, damage):
    cache = make(tmp_path)
    cache.put(FILE, 0, content(0))
    (file,) = files_in(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get(FILE, 0) is None
    assert cache.counters.damaged == 1
    assert not file.exists()
    cache.put(FILE, 0, content(0))
    assert cache.get(FILE, 0) == content(0)


def test_a_folder_in_the_place_of_a_block_is_no_block(tmp_path):
    cache = make(tmp_path)
    cache.put(FILE, 0, content(0))
    (path,) = files_in(tmp_path)
    path.unlink()
    path.mkdir()
    assert cache.get(FILE, 0) is None


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    cache = make(tmp_path, block_size=64)
    small = replace(FILE, size=64)
    cache.put(small, 0, content(0, 64))
    (file,) = files_in(tmp_path)
    sound = file.read_bytes()
    for bit in range(len(sound) * 8):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert cache.get(small, 0) is None
    file.write_bytes(sound)
    assert cache.get(small, 0) == content(0, 64)


def test_a_sound_block_under_the_name_of_another_is_not_served(tmp_path):
    cache = make(tmp_path)
    cache.put(FILE, 0, content(0))
    (first,) = files_in(tmp_path)
    cache.put(FILE, 1, content(1))
    (second,) = set(files_in(tmp_path)) - {first}
    second.write_bytes(first.read_bytes())
    assert cache.get(FILE, 1) is None
    assert cache.get(FILE, 0) == content(0)


# --- compressed -------------------------------------------------------------------------------------------------------

LARGE = 1 << 16
WORDS = random.Random(7).choices([b"order ", b"customer ", b"2026-01-01 ", b"paid "], k=LARGE)
TEXT = b"".join(WORDS)[:LARGE]
TEXT_FILE = replace(FILE, size=1000 * LARGE)


@needs_zstandard
def test_compressed_blocks_come_back_and_take_less_room(tmp_path):
    plain = make(tmp_path / "plain", block_size=LARGE)
    packed = make(tmp_path / "packed", block_size=LARGE, compresses=True)
    for cache in (plain, packed):
        for block in range(20):
            cache.put(TEXT_FILE, block, TEXT)
        assert all(cache.get(TEXT_FILE, block) == TEXT for block in range(20))
    assert bytes_on_disk(tmp_path / "packed") < bytes_on_disk(tmp_path / "plain") / 2


@needs_zstandard
def test_blocks_of_either_form_are_found_whatever_the_option_says(tmp_path):
    plain = make(tmp_path, block_size=LARGE)
    packed = make(tmp_path, block_size=LARGE, compresses=True)
    plain.put(TEXT_FILE, 1, TEXT)
    packed.put(TEXT_FILE, 2, TEXT)
    for cache in (plain, packed):
        assert cache.get(TEXT_FILE, 1) == cache.get(TEXT_FILE, 2) == TEXT


@needs_zstandard
def test_a_block_that_does_not_get_smaller_is_kept_as_it_is(tmp_path):
    cache = make(tmp_path, block_size=LARGE, compresses=True)
    data = random.Random(1).randbytes(LARGE)
    cache.put(TEXT_FILE, 0, data)
    assert cache.get(TEXT_FILE, 0) == data
    assert files_in(tmp_path)[0].read_bytes().endswith(data)


@needs_zstandard
def test_every_damage_of_a_compressed_block_is_noticed(tmp_path):
    cache = make(tmp_path, block_size=LARGE, compresses=True)
    cache.put(TEXT_FILE, 0, TEXT)
    path = files_in(tmp_path)[0]
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"x", content[:100], *(flip(content, at) for at in range(0, 200, 7))):
        path.write_bytes(damaged)
        assert cache.get(TEXT_FILE, 0) is None
        assert not path.exists()
    cache.put(TEXT_FILE, 0, TEXT)
    assert cache.get(TEXT_FILE, 0) == TEXT


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@needs_zstandard
def test_a_process_without_zstandard_leaves_compressed_blocks_alone(tmp_path, monkeypatch):
    cache = make(tmp_path, block_size=LARGE, compresses=True)
    cache.put(TEXT_FILE, 0, TEXT)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "zstandard", None)
        patch.delitem(sys.modules, "litevfs.files.compressed")
        patch.delattr("litevfs.files.compressed", raising=False)
        other = make(tmp_path, block_size=LARGE)
        assert other.get(TEXT_FILE, 0) is None
        assert other.counters.damaged == 0
        with pytest.raises(OptionError, match="cache_dir_compress needs zstandard"):
            make(tmp_path, compresses=True)
    assert cache.get(TEXT_FILE, 0) == TEXT

"""A record in two slots of one file: what counts after writes that were cut off, damaged or refused."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

from litevfs import local_files
from litevfs.replicate.slots import SlotFile


class Written:
    """A slot file, and how often the whole file was written."""

    def __init__(self, path: Path) -> None:
        self.path, self.slots, self.replaced = path, SlotFile(path), 0

    def write(self, **fields: object) -> None:
        self.slots.write(fields, self.replace)

    def replace(self, data: bytes) -> None:
        self.replaced += 1
        temp = self.path.with_suffix(".tmp")
        temp.write_bytes(data)
        temp.replace(self.path)

    def read_again(self) -> object:
        return SlotFile(self.path).read()


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "record")


def test_the_newest_record_counts_and_the_file_is_made_once(written):
    assert written.slots.read() is None
    for txid in range(1, 8):
        written.write(txid=txid, url="file:///replica")
        assert written.read_again() == {"txid": txid, "url": "file:///replica"}
    assert written.replaced == 1
    assert written.path.stat().st_size == 8192


def test_a_record_that_was_read_is_written_over_in_the_other_slot(written):
    written.write(txid=1)
    written.write(txid=2)
    later = Written(written.path)
    assert later.slots.read() == {"txid": 2}
    before = written.path.read_bytes()
    later.write(txid=3)
    after = written.path.read_bytes()
    assert later.replaced == 0
    assert after[4096:] == before[4096:]  # the record of TXID 2
    assert later.read_again() == {"txid": 3}


@pytest.mark.parametrize("after", range(1, 4))
def test_of_a_write_that_was_cut_off_anywhere_the_record_before_counts(written, after):
    for txid in range(1, after + 1):
        written.write(txid=txid, url="x" * 50)
    before = written.path.read_bytes()
    written.write(txid=after + 1, url="y" * 50)
    whole = written.path.read_bytes()
    changed = [at for at in range(len(whole)) if whole[at] != before[at]]
    for cut in changed:  # the bytes from here on were not written any more
        written.path.write_bytes(whole[:cut] + before[cut:])
        assert written.read_again() == {"txid": after, "url": "x" * 50}
    for start in changed[1:]:  # those before were not written yet
        written.path.write_bytes(before[:start] + whole[start:])
        assert written.read_again() == {"txid": after, "url": "x" * 50}


def test_a_flipped_bit_costs_its_slot_only(written):
    written.write(txid=1)
    written.write(txid=2)
    data = written.path.read_bytes()
    for at in range(0, data.index(b"}"), 3):
        flipped = bytearray(data)
        flipped[4096 + at] ^= 8
        written.path.write_bytes(flipped)
        assert written.read_again() == {"txid": 1}
        flipped[at] ^= 8
        written.path.write_bytes(flipped)
        assert written.read_again() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"version": 1, "position": {}}', b" " * 8192])
def test_what_cannot_be_understood_is_no_record_and_is_replaced(written, content):
    written.path.write_bytes(content)
    assert written.slots.read() is None
    written.write(txid=5)
    assert written.read_again() == {"txid": 5}


def test_a_record_of_an_earlier_version_is_read_and_replaced_by_slots(written):
    fields = {"replica_url": "file:///replica", "position": {"frame": 7}}
    known = {"version": 1, "checksum": zlib.crc32(json.dumps(fields).encode()), **fields}
    written.path.write_bytes(json.dumps(known, indent=1).encode())
    assert written.slots.read() == fields
    written.write(**fields | {"txid": 2})
    assert written.read_again() == fields | {"txid": 2}
    assert written.replaced == 1


def test_a_record_that_outgrows_its_slot_gets_a_larger_one(written):
    for size in (10, 4000, 5000, 4000, 9000, 10):
        written.write(url="x" * size)
        assert written.read_again() == {"url": "x" * size}
    assert written.replaced == 3
    assert written.path.stat().st_size == 2 * 3 * 4096


def test_a_file_that_is_gone_or_another_one_is_not_written_over(written, tmp_path):
    written.write(txid=1)
    written.path.unlink()
    written.write(txid=2)
    assert written.read_again() == {"txid": 2}
    other = Written(tmp_path / "other")
    other.write(txid=100)
    other.path.rename(written.path)
    written.write(txid=3)
    assert written.read_again() == {"txid": 3}
    assert written.replaced == 3


def test_a_write_that_fails_is_made_again_in_its_slot(written, monkeypatch: pytest.MonkeyPatch):
    written.write(txid=1)
    written.write(txid=2)

    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(local_files, "sync_data", refuse)
            with pytest.raises(OSError, match="Input/output"):
                written.write(txid=3)
        assert json.loads(written.path.read_bytes()[4096:])["txid"] == 2
    written.write(txid=4)
    assert written.read_again() == {"txid": 4}


def test_a_record_is_on_disk_when_it_is_written(written, monkeypatch: pytest.MonkeyPatch):
    written.write(txid=1)
    synced: list[bytes] = []
    sync = local_files.sync_data

    def noted(fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), written.path.stat())
        sync(fd)
        synced.append(written.path.read_bytes())

    monkeypatch.setattr(local_files, "sync_data", noted)
    written.write(txid=2)
    assert synced == [written.path.read_bytes()]
    assert json.loads(synced[0][4096:])["txid"] == 2

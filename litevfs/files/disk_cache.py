"""Blocks of LTX files in a folder: the tier below memory, kept over restarts and shared by processes.

A block is named by the hash of everything that identifies it: replica, LTX file, place. LTX files never change, so a
block is never invalidated; a replaced one has another name here. Knows neither pages nor storage; how the folder keeps
blocks is `keyed_files.py`'s.
"""

from __future__ import annotations

import hashlib

from litevfs.files.keyed_files import DiskCounters, KeyedFiles
from litevfs.ltx.file_info import LTXFileInfo


class DiskCache:
    """The blocks of one replica's LTX files in a folder. Safe to use from many threads and processes."""

    def __init__(self, folder: str, limit_bytes: int, *, url: str, block_size: int, compresses: bool = False) -> None:
        """`url` is the replica's, canonical; it is not written to disk. Touches nothing yet, see `prepare`.

        With `compresses`, new blocks are kept compressed; blocks are found in either form.
        """
        self.counters = DiskCounters()
        self.block_size = block_size
        self._replica = hashlib.sha256(b"litevfs\0" + url.encode(errors="surrogatepass") + b"\0")
        self._folder = KeyedFiles(folder, limit_bytes, self.counters, compresses=compresses)

    @property
    def is_writing(self) -> bool:
        """Whether new blocks are kept: no longer after a write to the folder failed, `prepare`'s too."""
        return not self._folder.has_failed

    def prepare(self) -> None:
        """Make the folder if there is none, see `is_writing`. Raises OptionError if there can be no folder."""
        self._folder.prepare(self.block_size)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def get(self, file: LTXFileInfo, block: int) -> bytes | None:
        """Block number `block` (from 0 on) of a file, or None."""
        data = self._folder.read(self._key(file, block), self._length(file, block))
        if data is None:
            self.counters.misses += 1
        else:
            self.counters.hits += 1
        return data

    def put(self, file: LTXFileInfo, block: int, data: bytes) -> None:
        """Keep a block; replaces an older one. Never raises: see `is_writing`."""
        if len(data) == self._length(file, block):
            self._folder.write(self._key(file, block), data)

    def drop(self, file: LTXFileInfo, block: int) -> None:
        """Delete a block, if the folder has it: its bytes turned out to be damaged."""
        self._folder.delete(self._key(file, block))

    def has(self, file: LTXFileInfo, block: int) -> bool:
        """Whether `get` will probably find the block."""
        return self._folder.has(self._key(file, block))

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _key(self, file: LTXFileInfo, block: int) -> bytes:
        """Everything that identifies this block; the etag, which may hold any character, comes last."""
        key = self._replica.copy()
        key.update(
            f"{file.level} {file.min_txid:x} {file.max_txid:x} {file.size} {file.modified_ms} "
            f"{block} {self.block_size} {file.etag}".encode(errors="surrogatepass")
        )
        return key.digest()

    def _length(self, file: LTXFileInfo, block: int) -> int:
        return min(self.block_size, file.size - block * self.block_size)

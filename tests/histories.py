"""Databases as plain bytes, for tests of what is made of LTX files: an oracle that shares no code with the package.

A `History` makes up transactions, keeps the whole image of the database after each of them, and writes the LTX files
with the tests' own slow writer. `image_after` applies LTX files that the package made, again with code of its own.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

import lz4.block

from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from tests.ltx.reference import File, page_of

START_MS = 1_700_000_000_000


@dataclass
class History:
    """Transactions 1, 2, 3...; `images[txid]` is the database after each."""

    seed: int = 0
    page_size: int = 512
    start_pages: int = 4
    most_pages: int = 12
    interval_ms: int = 1000
    images: dict[int, bytes] = field(default_factory=lambda: {0: b""})
    files: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def txid(self) -> int:
        return len(self.files)

    def timestamp_ms(self, txid: int) -> int:
        return START_MS + txid * self.interval_ms

    def step(self, commit: int | None = None) -> int:
        """One more transaction, which grows, shrinks or changes the database; its TXID."""
        txid = self.txid + 1
        before = self.images[txid - 1]
        old = len(before) // self.page_size
        if commit is None:
            commit = self.start_pages if txid == 1 else self.random.randint(1, self.most_pages)
        changed = {pgno for pgno in range(1, commit + 1) if pgno > old or self.random.random() < 0.3}
        pages = [(pgno, page_of(pgno, self.page_size, txid)) for pgno in sorted(changed)]
        image = bytearray(before[: commit * self.page_size].ljust(commit * self.page_size, b"\0"))
        for pgno, page in pages:
            image[(pgno - 1) * self.page_size : pgno * self.page_size] = page
        self.images[txid] = bytes(image)
        self.files[txid] = File(
            self.page_size, commit, txid, txid, timestamp_ms=self.timestamp_ms(txid), pages=pages
        ).write()
        return txid

    def run(self, steps: int) -> History:
        for _ in range(steps):
            self.step()
        return self

    def upload(self, client: ReplicaClient, txid: int) -> LTXFileInfo:
        return client.write(0, txid, txid, self.files[txid], self.timestamp_ms(txid))

    def upload_all(self, client: ReplicaClient) -> None:
        for txid in self.files:
            self.upload(client, txid)


def read_pages(data: bytes) -> tuple[int, int, dict[int, bytes]]:
    """(page size, commit, pages) of an LTX file, frame by frame, by the words of the format; nothing is checked."""
    page_size, commit = struct.unpack_from(">II", data, 8)
    pages: dict[int, bytes] = {}
    at = 100
    while True:
        pgno, flags = struct.unpack_from(">IH", data, at)
        if pgno == 0:
            return page_size, commit, pages
        assert flags == 1
        (size,) = struct.unpack_from(">I", data, at + 6)
        pages[pgno] = lz4.block.decompress(data[at + 10 : at + 10 + size], uncompressed_size=page_size)
        at += 10 + size


def image_after(before: bytes, *files: bytes) -> bytes:
    """The database image `before` with LTX files applied, oldest first."""
    image = bytearray(before)
    for data in files:
        page_size, commit, pages = read_pages(data)
        del image[commit * page_size :]
        image.extend(bytes(commit * page_size - len(image)))
        for pgno, page in pages.items():
            image[(pgno - 1) * page_size : pgno * page_size] = page
    return bytes(image)


def content(client: ReplicaClient) -> dict[tuple[int, int, int], bytes]:
    """Every file of a replica: (level, min_txid, max_txid) to its bytes."""
    files = [file for level in range(10) for file in client.list_files(level)]
    return {(file.level, file.min_txid, file.max_txid): client.read(file) for file in files}

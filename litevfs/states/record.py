"""What a process knows of a replica, as bytes that a later one goes on from: a state, and the proofs of its history.

Owns the format. A record says where pages lie, never what they contain, and is trusted only as far as the replica bears
it out (see `Follower.resume`). Knows no files and no storage.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litevfs.ltx.checksum import checksum_of
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.states.chunks import CHUNK_PAGES, Chunk, empty_chunk, slots_of
from litevfs.states.lineage import Times
from litevfs.states.snapshot import Snapshot, empty_snapshot
from litevfs.states.versions import Versions

_MAGIC = b"LVFSKNW1"
_HEAD = struct.Struct(">8sQII")  # magic, checksum of the rest, bytes of the JSON part, bytes of one array entry in all
_ENTRY_BYTES = 4 + 4 + 8 + 2  # version, file, frame, check
MAX_TIMES = 1_000
"""Times of transactions in a record, the newest."""


@dataclass(frozen=True, slots=True)
class Known:
    """A state of a replica, and what tells whether the replica still is the one of that state."""

    snapshot: Snapshot
    anchor: LTXFileInfo | None  # the newest file of level 0 that led to it
    seen: frozenset[LTXFileInfo]  # files of level 0 that are of its history
    times: Times
    is_verified: bool  # whether every file was verified whole


def pack(known: Known, url: str) -> bytes:
    """The record; `url` is the replica's canonical one, of which only a hash is kept."""
    snapshot = known.snapshot
    base, far = snapshot.versions.content
    head = {
        "replica": _hash(url),
        "page_size": snapshot.page_size,
        "commit": snapshot.commit,
        "txid": snapshot.txid,
        "whole_txid": snapshot.whole_txid,
        "timestamp_ms": snapshot.timestamp_ms,
        "versions": [base, far],
        "files": [[number, asdict(file)] for number, file in snapshot.files.items()],
        "anchor": known.anchor and asdict(known.anchor),
        "seen": [asdict(file) for file in known.seen],
        "times": [[*key, time_ms] for key, time_ms in list(known.times.items())[-MAX_TIMES:]],
        "is_verified": known.is_verified,
    }
    text = json.dumps(head).encode(errors="surrogatepass")
    arrays = [_joined(snapshot, kind) for kind in (_versions, _files, _frames, _checks)]
    body = text + zlib.compress(b"".join(values.tobytes() for values in arrays), 1)
    return _HEAD.pack(_MAGIC, checksum_of(body), len(text), _ENTRY_BYTES) + body


def unpack(data: bytes, url: str) -> Known | None:
    """The content of a record of this replica; None if it is damaged, of another replica or version."""
    if len(data) < _HEAD.size:
        return None
    magic, checksum, text_bytes, entry_bytes = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if (magic, entry_bytes) != (_MAGIC, _ENTRY_BYTES) or checksum != checksum_of(body):
        return None
    head: dict[str, Any] = json.loads(body[:text_bytes])
    if head["replica"] != _hash(url):
        return None
    snapshot = _snapshot_of(head, zlib.decompress(body[text_bytes:]))
    return Known(
        snapshot=snapshot,
        anchor=head["anchor"] and LTXFileInfo(**head["anchor"]),
        seen=frozenset(LTXFileInfo(**file) for file in head["seen"]),
        times={(is_snapshot, txid): time_ms for is_snapshot, txid, time_ms in head["times"]},
        is_verified=head["is_verified"],
    )


def _snapshot_of(head: dict[str, Any], content: bytes) -> Snapshot:
    commit = int(head["commit"])
    base, far = head["versions"]
    start = empty_snapshot(versions=Versions(base, far))
    columns: list[NDArray[Any]] = []
    offset = 0
    for dtype in (np.uint32, np.uint32, np.uint64, np.uint16):
        values = np.frombuffer(content, dtype, commit, offset)
        columns.append(values)
        offset += values.nbytes
    chunks = tuple(_chunk(columns, number, commit) for number in range(-(-commit // CHUNK_PAGES)))
    numbers, counts = np.unique(columns[1], return_counts=True)
    uses = Counter({n: c for n, c in zip(numbers.tolist(), counts.tolist(), strict=True) if n})
    files = {number: LTXFileInfo(**file) for number, file in head["files"]}
    return Snapshot(
        page_size=head["page_size"],
        commit=commit,
        txid=head["txid"],
        whole_txid=head.get("whole_txid", 0),
        timestamp_ms=head["timestamp_ms"],
        change_counter=start.change_counter + 1,
        epoch=start.epoch,
        versions=start.versions,
        chunks=chunks,
        files={number: files[number] for number in uses},
        uses=uses,
    )


def _chunk(columns: Sequence[NDArray[Any]], number: int, commit: int) -> Chunk:
    chunk = empty_chunk(slots_of(commit, number))
    start = number * CHUNK_PAGES
    end = min(commit, start + CHUNK_PAGES)
    for values, column in zip(chunk.arrays, columns, strict=True):
        values[: end - start] = column[start:end]
    return chunk


def _joined(snapshot: Snapshot, kind: Callable[[Chunk], array[int]]) -> NDArray[Any]:
    parts = [np.asarray(kind(chunk)) for chunk in snapshot.chunks]
    return np.concatenate(parts)[: snapshot.commit] if parts else np.zeros(0, np.uint8)


def _versions(chunk: Chunk) -> array[int]:
    return chunk.versions


def _files(chunk: Chunk) -> array[int]:
    return chunk.files


def _frames(chunk: Chunk) -> array[int]:
    return chunk.frames


def _checks(chunk: Chunk) -> array[int]:
    return chunk.checks


def _hash(url: str) -> str:
    return hashlib.sha256(b"litevfs known\0" + url.encode(errors="surrogatepass")).hexdigest()

"""`litevfs dump`: the header, the page index and the trailer of one LTX file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from litevfs.commands.options import STORAGE_OPTIONS, add_options, checked, open_fetcher
from litevfs.commands.text import count, format_fields, format_table
from litevfs.errors import TXIDNotFoundError
from litevfs.ltx.decoder import read_header_and_index, tail_size_needed
from litevfs.ltx.format import Header, Trailer
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.ltx.page_index import PageIndex
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.units import format_bytes, format_timestamp

DESCRIPTION = (
    "Show the header, the page index and the trailer of one LTX file, checked against each other: the file at a local "
    "path, or a file of a replica, which is the newest one unless --txid or --level picks another."
)
_HEAD_BYTES = 4096
_TAIL_BYTES = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("file", metavar="FILE|URL", help="a local .ltx file, or a replica")
    parser.add_argument(
        "--txid",
        type=checked(parse_txid),
        metavar="TXID",
        help="of a replica: the file that holds it, on the lowest level",
    )
    parser.add_argument("--level", type=int, choices=LEVELS, metavar="N", help="of a replica: 0 to 9")
    parser.add_argument("--pages", action="store_true", help="every page, and where its frame lies")
    parser.add_argument("--json", action="store_true", help="an object, sizes in bytes")
    add_options(parser, STORAGE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    path = Path(args.file)
    if path.is_file() or (path.suffix == ".ltx" and "://" not in args.file):
        with path.open("rb") as stream:

            def read(offset: int, size: int) -> bytes:
                stream.seek(offset)
                return stream.read(size)

            _print(args, str(path), None, path.stat().st_size, *_read(read, path.stat().st_size))
        return 0
    args.url = args.file
    with open_fetcher(args) as fetcher:
        file = pick_file(
            fetcher.list_levels(LEVELS if args.level is None else [args.level]), args.txid and parse_txid(args.txid)
        )
        parts = _read(lambda offset, size: fetcher.read(file, offset, min(size, file.size - offset)), file.size)
        _print(args, fetcher.client.key(file), file.level, file.size, *parts)
    return 0


def pick_file(files: Iterable[LTXFileInfo], txid: int | None) -> LTXFileInfo:
    """The file that holds a TXID, the lowest level and the shortest range first; without one, that of the newest TXID.

    Raises TXIDNotFoundError.
    """
    candidates = [file for file in files if txid is None or file.min_txid <= txid <= file.max_txid]
    if not candidates:
        hint = "litevfs ls shows the files, and the TXIDs of each"
        raise TXIDNotFoundError("no LTX file holds it" if txid else "no LTX file", min_txid=txid, hint=hint)
    newest = max(file.max_txid for file in candidates) if txid is None else None
    return min(
        (file for file in candidates if newest in (None, file.max_txid)),
        key=lambda file: (file.level, file.max_txid - file.min_txid),
    )


def _read(read: Callable[[int, int], bytes], file_size: int) -> tuple[Header, PageIndex, Trailer]:
    head = read(0, _HEAD_BYTES)
    Header.unpack(head)  # raises the clearest error for a file that is no LTX file
    tail = read(max(0, file_size - _TAIL_BYTES), _TAIL_BYTES)
    needed = tail_size_needed(tail, file_size)
    if needed > len(tail):
        tail = read(file_size - needed, needed)
    return read_header_and_index(head, tail, file_size)


def _print(
    args: argparse.Namespace,
    key: str,
    level: int | None,
    size: int,
    header: Header,
    index: PageIndex,
    trailer: Trailer,
) -> None:
    pages = zip(index.pgnos.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True)
    if args.json:
        fields: dict[str, object] = {"key": key, "level": level, "size": size, "header": _header_json(header)}
        fields["index"] = {"pages": len(index), "frame_bytes": int(index.sizes.sum())}
        fields["trailer"] = {name: f"{value:016x}" for name, value in asdict(trailer).items()}
        if args.pages:
            fields["pages"] = [{"pgno": pgno, "offset": offset, "size": size} for pgno, offset, size in pages]
        print(json.dumps(fields, indent=1))
        return
    place = [("file", key), *([] if level is None else [("level", level)]), ("size", f"{size:,} bytes")]
    print(format_fields([*place, *_header_fields(header), *_index_fields(header, index), *_trailer_fields(trailer)]))
    if args.pages and len(index):
        print(f"\n{format_table(['page', 'offset', 'frame bytes'], pages)}")


def _header_json(header: Header) -> dict[str, object]:
    fields = asdict(header)
    fields["timestamp"] = format_timestamp(fields.pop("timestamp_ms"))
    for name in ("min_txid", "max_txid", "pre_apply_checksum"):
        fields[name] = f"{fields[name]:016x}"
    return fields


def _header_fields(header: Header) -> list[tuple[str, object]]:
    size = format_bytes(header.commit * header.page_size)
    fields: list[tuple[str, object]] = [
        ("TXIDs", f"{format_txid(header.min_txid)}-{format_txid(header.max_txid)}"),
        ("kind", "snapshot (every page)" if header.is_snapshot else "changed pages"),
        ("timestamp", format_timestamp(header.timestamp_ms)),
        ("page size", f"{header.page_size} bytes"),
        ("commit", f"{count(header.commit, 'page')}, a database of {size}"),
        ("flags", f"{header.flags:#x}" + ("" if header.has_checksums else " (no database checksum)")),
        ("pre-apply checksum", f"{header.pre_apply_checksum:016x}"),
        ("WAL offset, size", f"{header.wal_offset}, {header.wal_size}"),
        ("WAL salts", f"{header.wal_salt1:08x} {header.wal_salt2:08x}"),
    ]
    return fields + ([("node", f"{header.node_id:016x}")] if header.node_id else [])


def _index_fields(header: Header, index: PageIndex) -> list[tuple[str, object]]:
    if not len(index):
        return [("pages", "none")]
    frames = int(index.sizes.sum())
    ratio = frames / (len(index) * header.page_size)
    return [
        ("pages", f"{len(index):,}, from {index.pgnos[0]} to {index.pgnos[-1]}"),
        ("frames", f"{format_bytes(frames)}, {ratio:.0%} of the pages' size"),
    ]


def _trailer_fields(trailer: Trailer) -> list[tuple[str, object]]:
    return [
        ("post-apply checksum", f"{trailer.post_apply_checksum:016x}"),
        ("file checksum", f"{trailer.file_checksum:016x} (litevfs verify compares it)"),
    ]

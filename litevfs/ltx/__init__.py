"""The LTX file format, version 3: bytes to values and back, without I/O."""

from litevfs.ltx.checksum import DatabaseChecksum, FileChecksum, database_checksum, page_checksum
from litevfs.ltx.compactor import CompactionInput, compact, compacted_header
from litevfs.ltx.decoder import LTXFile, StreamDecoder, decode_file, read_header_and_index, tail_size_needed
from litevfs.ltx.encoder import Encoder, encode_file
from litevfs.ltx.format import Header, Trailer, lock_pgno
from litevfs.ltx.frame import decode_frame
from litevfs.ltx.names import format_file_name, format_txid, parse_file_name, parse_txid
from litevfs.ltx.page_index import PageIndex, decode_page_index, encode_page_index, index_size_from_tail
from litevfs.ltx.page_rules import validate_page_index

__all__ = [
    "CompactionInput",
    "DatabaseChecksum",
    "Encoder",
    "FileChecksum",
    "Header",
    "LTXFile",
    "PageIndex",
    "StreamDecoder",
    "Trailer",
    "compact",
    "compacted_header",
    "database_checksum",
    "decode_file",
    "decode_frame",
    "decode_page_index",
    "encode_file",
    "encode_page_index",
    "format_file_name",
    "format_txid",
    "index_size_from_tail",
    "lock_pgno",
    "page_checksum",
    "parse_file_name",
    "parse_txid",
    "read_header_and_index",
    "tail_size_needed",
    "validate_page_index",
]

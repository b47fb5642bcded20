"""Asks for level-0 files by the names they must have, instead of listing. Does not decide when that is useful.

A primary that writes one transaction a file names the next one after the state's TXID: a read by that name costs a
twelfth of a listing, and returns the file itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from litevfs.errors import LTXFormatError
from litevfs.files.fetch import WHOLE_FILE_BYTES, Fetcher
from litevfs.files.fetched import FetchedFile
from litevfs.files.hedges import NAMED
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.names import format_file_name
from litevfs.replica_clients.base import ReadsNamed


def reads_named(fetcher: Fetcher) -> bool:
    """Whether the storage of `fetcher` supports reads by name, and each request is worth saving."""
    return fetcher.is_remote and isinstance(fetcher.client, ReadsNamed)


def fetch_named(fetcher: Fetcher, txids: Sequence[int]) -> list[FetchedFile]:
    """The level-0 files of these single transactions, which follow on each other, up to the first that is missing.

    One request each, all at once, not retried. A file that is damaged or too large for one request ends the result,
    too, unless it is the first, which is read as any other file is. Raises LTXFormatError, and what the client raises:
    StoragePermissionError if a storage refuses to say that a file is missing.
    """
    fetched: list[FetchedFile] = []
    for found in fetcher.threads.parallel([partial(_read, fetcher, txid) for txid in txids]):
        if found is None or (fetched and found[0].size > WHOLE_FILE_BYTES):
            break
        info, data = found
        try:
            fetched += fetcher.fetch_files([info]) if info.size > WHOLE_FILE_BYTES else [fetcher.checked(info, data)]
        except LTXFormatError:
            if fetched:
                break
            raise
    return fetched


def _read(fetcher: Fetcher, txid: int) -> tuple[LTXFileInfo, bytes] | None:
    client = fetcher.client
    assert isinstance(client, ReadsNamed)
    ask = partial(client.read_named, 0, txid, txid, WHOLE_FILE_BYTES, timeout_s=fetcher.request_timeout_s)
    name = f"0/{format_file_name(txid, txid)}"
    return fetcher.hedged(
        NAMED, lambda: fetcher.requests.get(ask, lambda found: 0 if found is None else len(found[1]), name)
    )

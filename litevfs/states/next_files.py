"""Finds the next files of level 0 by their names, and decides whether names may be used. Applies nothing.

It gives names up for good, for a replica in this process, when it meets a name that holds more than one transaction, a
storage that refuses to say that a file does not exist, or a cache in between that remembers misses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress

from litevfs.concurrency.futures import result_of
from litevfs.errors import StoragePermissionError, TransientStorageError
from litevfs.files.fetch import Fetcher
from litevfs.files.fetched import FetchedFile
from litevfs.files.named import fetch_named, reads_named
from litevfs.ltx.file_info import LTXFileInfo

logger = logging.getLogger("litevfs.states.next_files")

BUSY_POLLS = 10
"""For so many polls after a new file, the proof that the replica is the same is requested with the next file."""
MAX_AT_ONCE = 16
"""Files requested at once at most: first two, then twice as many as before as long as all of them exist."""
MAX_SURPRISES = 2
"""Listings in a row that show a file which a request by name just did not find: chance explains one at most."""


class NextFiles:
    """The next files of one replica. One caller at a time."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._given_up = False
        self._surprises = 0
        self._idle_polls = BUSY_POLLS
        self._known: dict[tuple[int, int, int, str], LTXFileInfo] = {}  # by the fields that a listing shows too
        self.use(fetcher)

    def use(self, fetcher: Fetcher) -> None:
        """Go on with another fetcher of the same replica."""
        self._fetcher = fetcher
        self._can_ask = reads_named(fetcher)

    @property
    def is_usable(self) -> bool:
        """Whether files are requested by name."""
        return self._can_ask and not self._given_up

    def find(self, txid: int, is_proved: Callable[[bool], bool]) -> list[FetchedFile] | None:
        """The files that follow on the state `txid`, in order; [] if there are none.

        `is_proved` asks whether the replica still is the one of that state, by one request alone if given True. None if
        it is not, or if names cannot be used: then only listings tell. Raises what `fetch_named` raises, but for
        StoragePermissionError.
        """
        proof = self._submit(lambda: is_proved(True)) if self._idle_polls < BUSY_POLLS else None
        self._idle_polls += 1
        try:
            found = fetch_named(self._fetcher, [txid + 1])
        except StoragePermissionError as error:
            self._give_up(f"the storage refuses to say that a file is not there: {error}")
            return None
        if not found:
            return []
        if not _result(proof, is_proved):
            return None
        self._idle_polls = self._surprises = 0
        count = 1
        while count <= MAX_AT_ONCE:
            first = found[-1].header.max_txid + 1
            more = fetch_named(self._fetcher, range(first, first + count))
            found += more
            if len(more) < count:
                break
            count *= 2
        for file in found:
            self._known[_key(file.info)] = file.info
        return found

    def _submit(self, is_proved: Callable[[], bool]) -> Future[bool] | None:
        """Request the proof, while the next file is requested."""
        try:
            return self._fetcher.threads.submit(is_proved)
        except RuntimeError:  # no thread can start now
            return None

    def look_at(self, level_0: Iterable[LTXFileInfo], txid: int, *, was_asked: bool) -> None:
        """Learn from a listing of level 0; `was_asked`: a request by name just found no file that follows on `txid`."""
        is_next = False
        for file in level_0:
            if file.min_txid != file.max_txid:
                self._give_up(f"files hold several transactions, such as {file.name}")
            is_next = is_next or file.min_txid == txid + 1
        if was_asked:
            self._surprises = self._surprises + 1 if is_next else 0
            if self._surprises >= MAX_SURPRISES:
                self._give_up("files are listed that are not found by their name: does a cache remember misses?")

    def as_known(self, files: list[LTXFileInfo]) -> list[LTXFileInfo]:
        """The listed files; one found by name before is the value known from then (its write time may be rounded)."""
        return [self._known.get(_key(file), file) for file in files] if self._known else files

    def keep_only(self, files: Iterable[LTXFileInfo]) -> None:
        """Forget all files but these."""
        kept = {_key(file) for file in files}
        self._known = {key: file for key, file in self._known.items() if key in kept}

    def _give_up(self, why: str) -> None:
        if self.is_usable:
            logger.info("listing level 0 at each poll from now on: %s", why)
        self._given_up = True


def _result(proof: Future[bool] | None, is_proved: Callable[[bool], bool]) -> bool:
    """What the proof says; it is tried again only here, where the storage has answered: else each poll would go on."""
    if proof is not None:
        with suppress(TransientStorageError):
            return result_of(proof)
    return is_proved(False)


def _key(file: LTXFileInfo) -> tuple[int, int, int, str]:
    return file.min_txid, file.max_txid, file.size, f"{file.level} {file.etag}"

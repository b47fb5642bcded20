"""Tests what a storage permits to a reader and to a primary, one operation at a time, and says how to fix failures.

Knows clients only by their protocol. It writes to a separate folder below the replica's, where neither litevfs nor
Litestream looks for files, and deletes that at the end.
"""

from __future__ import annotations

import enum
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from litevfs.errors import (
    ConditionsUnsupportedError,
    LitevfsError,
    StorageError,
    StorageFileExistsError,
    StoragePermissionError,
    StoragePreconditionError,
    TransientStorageError,
)
from litevfs.operations.doctor_hints import permission_hint
from litevfs.replica_clients.base import (
    LEVELS,
    FindsWays,
    LeavesFolders,
    ListsLevels,
    LTXFileInfo,
    ReplicaClient,
    SideObjects,
)
from litevfs.replica_clients.urls import open_replica_client
from litevfs.units import format_bytes

PROBE_BYTES = 4 << 20
"""Bytes written and read to measure throughput."""
_SAMPLE_BYTES = 1 << 20  # of a replica's own file
_ROUND_TRIPS = 5
_READ_BACK = "a primary claims its lease and reads it back, which costs a second at its start and more requests"
_CLOCK_LIMIT_S = 5.0
_PROBE_TIME_MS = 1_000_000_000_000  # 2001-09-09T01:46:40Z: no clock shows that now


class Outcome(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"  # works, and there is something to know
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its outcome."""

    role: str  # "reader" or "primary": who needs it
    name: str
    outcome: Outcome
    detail: str  # what was found
    mend: str | None = None  # what would mend it


def examine(url: str, *, read_timeout_s: float = 30.0, with_writes: bool = True) -> list[Check]:
    """Test what a reader needs of the replica at `url`, and `with_writes` what a primary needs.

    The checks report failures of the storage. Raises ReplicaURLError for a URL that no client understands, and
    OptionError.
    """
    with closing(open_replica_client(url, read_timeout_s=read_timeout_s)) as client:
        examination = _Examination(url, client, read_timeout_s)
        examination.read()
        if with_writes:
            with closing(open_replica_client(_probe_url(url), read_timeout_s=read_timeout_s)) as probe:
                examination.write(probe)
        examination.note_ways()
    return examination.checks


def _probe_url(url: str) -> str:
    """The URL of a folder below the replica that no other program uses."""
    name = f"litevfs-doctor-{secrets.token_hex(8)}"
    if "://" not in url and not url.startswith("file:"):
        return str(Path(url) / name)
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl()


class _Examination:
    """One run of `examine`."""

    def __init__(self, url: str, client: ReplicaClient, read_timeout_s: float) -> None:
        self.checks: list[Check] = []
        self._client = client
        self._scheme = client.url.partition(":")[0]
        self._read_timeout_s = read_timeout_s
        self._left = ""  # what is left if deleting fails: "files stay", "files may stay"
        self._written_s = 0.0  # when the probe was written, seconds since the epoch

    # --- what a reader needs ------------------------------------------------------------------------------------------

    def read(self) -> None:
        """List the replica and read from its newest file."""
        files: list[LTXFileInfo] = []

        def list_levels() -> tuple[Outcome, str]:
            files.extend(_list_all(self._client))
            if not files:
                return Outcome.NOTE, "no LTX file yet: a primary has to replicate here first"
            levels = ", ".join(str(level) for level in sorted({file.level for file in files}))
            size = format_bytes(sum(file.size for file in files))
            return Outcome.OK, f"{len(files):,} files of {size} on levels {levels}"

        self._check("reader", "list", list_levels)
        if files:
            newest = max(files, key=lambda file: (file.max_txid, -file.level))
            self._check("reader", "read", lambda: self._read_start(self._client, newest), of="read")
            self._check("reader", "range", lambda: self._read_range(self._client, newest), of="read")
            self._measure("reader", self._client, max(files, key=lambda file: file.size))

    def _read_start(self, client: ReplicaClient, file: LTXFileInfo) -> tuple[Outcome, str]:
        size = min(file.size, _SAMPLE_BYTES)
        data = client.read(file, 0, size, timeout_s=self._read_timeout_s)
        if len(data) != size:
            raise StorageError(f"{len(data)} bytes came instead of {size}", key=client.key(file))
        return Outcome.OK, f"{format_bytes(size)} of {client.key(file)}"

    def _read_range(self, client: ReplicaClient, file: LTXFileInfo) -> tuple[Outcome, str]:
        whole = client.read(file, 0, min(file.size, _SAMPLE_BYTES), timeout_s=self._read_timeout_s)
        first, size = len(whole) // 3, max(1, len(whole) // 3)
        part = client.read(file, first, size, timeout_s=self._read_timeout_s)
        past = client.read(file, file.size, 10, timeout_s=self._read_timeout_s)
        if part != whole[first : first + size] or past:
            raise StorageError(
                "a range came back as other bytes than the whole has there",
                key=client.key(file),
                hint="a cache or proxy before the storage, or the storage, does not keep byte ranges",
            )
        return Outcome.OK, f"bytes {first}-{first + size - 1}"

    def _measure(self, role: str, client: ReplicaClient, file: LTXFileInfo) -> None:
        """Latency and throughput of reads."""

        def read(size: int) -> None:
            client.read(file, 0, size, timeout_s=self._read_timeout_s)

        def round_trip() -> tuple[Outcome, str]:
            times = [_timed(lambda: read(1)) for _ in range(_ROUND_TRIPS)]
            return Outcome.OK, f"{statistics.median(times) * 1000:.1f} ms (median of {_ROUND_TRIPS})"

        def throughput() -> tuple[Outcome, str]:
            size = min(file.size, PROBE_BYTES)
            seconds = _timed(lambda: read(size))
            return (
                Outcome.OK,
                f"{format_bytes(round(size / max(seconds, 1e-9)))}/s over one connection ({format_bytes(size)})",
            )

        self._check(role, "round trip", round_trip, of="read")
        self._check(role, "throughput", throughput, of="read")

    # --- what a primary needs -----------------------------------------------------------------------------------------

    def write(self, probe: ReplicaClient) -> None:
        """Write, replace no file, read back, delete: in the folder of `probe`, which is empty before and afterwards."""
        content = secrets.token_bytes(PROBE_BYTES)
        written: list[LTXFileInfo] = []

        def store() -> tuple[Outcome, str]:
            try:
                seconds = _timed(lambda: written.append(probe.write(0, 1, 1, content, _PROBE_TIME_MS)))
            except TransientStorageError:  # and no refusal
                self._left = "files may stay"
                raise
            self._left = "files stay"
            self._written_s = time.time()
            return Outcome.OK, f"{format_bytes(len(content))} in {seconds:.2f} s"

        def read_back() -> tuple[Outcome, str]:
            (listed,) = probe.list_files(0)
            if probe.read(listed, timeout_s=self._read_timeout_s) != content:
                raise StorageError("what was written reads as something else", key=probe.key(listed))
            return Outcome.OK, "listed and read at once, byte for byte"

        with self._cleaned_up(probe):
            if not self._check("primary", "write", store):
                return
            self._check("primary", "read back", read_back, of="read")
            self._check("primary", "condition", lambda: _try_condition(probe), of="write")
            if isinstance(probe, SideObjects):
                self._check("primary", "lease", lambda: _try_lease(probe), of="write")
            self._check("primary", "clock", lambda: self._compare_clocks(written[0]))
            self._measure("primary", probe, written[0])
            self._check("primary", "delete", lambda: _try_delete(probe))

    def _compare_clocks(self, written: LTXFileInfo) -> tuple[Outcome, str]:
        if abs(written.modified_ms - _PROBE_TIME_MS) < 2000:
            return Outcome.OK, "files keep the time that they are given"
        offset_s = written.modified_ms / 1000 - self._written_s
        if abs(offset_s) > _CLOCK_LIMIT_S:
            return Outcome.NOTE, f"this machine's differs from the storage's by {offset_s:.0f} s: set it (NTP)"
        return Outcome.OK, f"{offset_s:+.1f} s against this machine's"

    @contextmanager
    def _cleaned_up(self, probe: ReplicaClient) -> Iterator[None]:
        try:
            yield
        finally:
            try:
                probe.delete(_list_all(probe))
                if isinstance(probe, LeavesFolders):
                    probe.remove_folder()
            except LitevfsError:
                if self._left:
                    left = f"{self._left} at {probe.url}"
                    self.checks.append(Check("primary", "clean up", Outcome.NOTE, left, "delete them by hand"))

    # --- both ---------------------------------------------------------------------------------------------------------

    def note_ways(self) -> None:
        """Report what the client has found out about its server."""
        if isinstance(self._client, FindsWays):
            for text in self._client.workarounds:
                self.checks.append(Check("reader", "server", Outcome.NOTE, text))

    def _check(self, role: str, name: str, call: Callable[[], tuple[Outcome, str]], *, of: str = "") -> bool:
        """Note the outcome of `call`, which needs the permission to `of` (default: `name`); whether it worked."""
        try:
            outcome, detail = call()
        except LitevfsError as error:
            hint = error.hint
            if isinstance(error, StoragePermissionError):
                allow = permission_hint(self._scheme, of or name, self._client.url)
                hint = f"{allow}; if that is allowed: {hint}" if allow and hint else allow or hint
            self.checks.append(Check(role, name, Outcome.FAILED, _without_hint(error), hint))
            return False
        self.checks.append(Check(role, name, outcome, detail))
        return True


def _list_all(client: ReplicaClient) -> list[LTXFileInfo]:
    if isinstance(client, ListsLevels):
        with suppress(StoragePermissionError):  # perhaps only the wider prefix is forbidden
            files, are_all = client.list_from(0)
            if are_all:
                return files
    return [file for level in LEVELS for file in client.list_files(level)]


def _try_condition(probe: ReplicaClient) -> tuple[Outcome, str]:
    """Whether a file that exists stays, when it is written with a condition."""
    probe.write(0, 2, 2, b"first", _PROBE_TIME_MS, exclusive=True)
    try:
        probe.write(0, 2, 2, b"second", _PROBE_TIME_MS, exclusive=True)
    except StorageFileExistsError:
        if isinstance(probe, FindsWays) and any(text.startswith("no conditional") for text in probe.workarounds):
            return Outcome.NOTE, "none: a listing is looked at instead, which two primaries at one moment can pass"
        return Outcome.OK, "a file that exists is not replaced"
    raise StorageError(
        "the storage ignores the condition of a write: it replaced a file that exists",
        hint="let one primary at most replicate here; a newer version of the server may keep conditions",
    )


def _try_lease(probe: SideObjects) -> tuple[Outcome, str]:
    """Whether small objects can be written with conditions, as a lease of the one primary needs."""
    name = "doctor.json"
    etag = ""
    try:
        etag = probe.put_object(name, b"{}", if_absent=True)
        for condition in ({"if_absent": True}, {"if_match": '"0123456789abcdef0123456789abcdef"'}):
            try:
                probe.put_object(name, b"[]", **condition)
            except StoragePreconditionError:
                continue
            return Outcome.NOTE, f"conditions on small objects are ignored: {_READ_BACK}"
        probe.put_object(name, b"[]", if_match=etag)
    except ConditionsUnsupportedError:
        return Outcome.NOTE, f"no conditions on small objects: {_READ_BACK}"
    finally:
        with suppress(LitevfsError):
            probe.delete_object(name)
    return Outcome.OK, "conditions on small objects are kept"


def _try_delete(probe: ReplicaClient) -> tuple[Outcome, str]:
    files = probe.list_files(0)
    probe.delete(files)
    left = probe.list_files(0)
    if left:
        raise StorageError(f"{len(left)} of {len(files)} deleted files are still listed", key=probe.key(left[0]))
    return Outcome.OK, f"{len(files)} files"


def _timed(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _without_hint(error: LitevfsError) -> str:
    return str(error).partition("; hint: ")[0]

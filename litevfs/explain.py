"""What a query costs of requests: runs it on a fresh view of a replica, and says why each request was made.

Owns the report. Listens to the requests of one replica and to the pages that SQLite reads; changes neither.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from litevfs.bindings.apsw_errors import apsw_errors, make_apsw_error
from litevfs.bindings.apsw_files import SessionVFS
from litevfs.bindings.beside import start_beside
from litevfs.bindings.statements import Noted
from litevfs.bindings.warming import THREAD_NAME
from litevfs.errors import OptionError
from litevfs.files.requests import Request
from litevfs.live.registry import registry
from litevfs.live.session import Session, Warming
from litevfs.options import Options, check_names
from litevfs.states.snapshot import Snapshot
from litevfs.texts import parse_replica_url

OPENING, NEEDED, USED, UNUSED = "opening", "needed", "read ahead, used", "read ahead for nothing"
WARM, WARM_USED = "warm", "warm, used"
"""Why a request was made. The last two are for the queries of `warm`; of WARM_USED the query has read pages, too."""
REASONS = (OPENING, NEEDED, USED, UNUSED, WARM_USED, WARM)
LATENCIES_S = (0.004, 0.025, 0.1)
_Frames = dict[str, set[tuple[int, int]]]
_UNBOUNDED = itertools.count(10**9)
"""Rate limits that bound nothing: connections share a replica only if they have the same."""


@dataclass(frozen=True, slots=True)
class IORequest:
    """One request. Times are seconds since opening began."""

    began_s: float
    took_s: float
    kind: str  # "LIST" or "GET"
    name: str  # of the file, or what was listed
    offset: int
    size_bytes: int  # of the answer
    why: str  # one of REASONS


@dataclass(frozen=True, slots=True)
class IOReport:
    """The requests of a query on a fresh view, and of those of `warm` beside it, in the order in which they began."""

    requests: tuple[IORequest, ...]
    rows: int  # of the result
    opened_s: float  # when the view was open
    total_s: float  # when the last row was there
    latency_s: float  # of a request, as measured
    warmed: tuple[int, int] = (0, 0)  # queries of `warm` that succeeded, of how many

    @property
    def rounds(self) -> int:
        """Requests that had to wait for one another: how often the line's latency had to be waited for.

        Those that only queries of `warm` had a use for do not count.
        """
        depths: list[int] = []
        requests = [request for request in self.requests if request.why != WARM]
        for i, request in enumerate(requests):
            before = [depths[j] for j, other in enumerate(requests[:i]) if _ended(other) <= request.began_s]
            depths.append(1 + max(before, default=0))
        return max(depths, default=0)

    def count(self, why: str | None = None) -> tuple[int, int]:
        """(requests, bytes) made for this reason, or in all."""
        found = [request for request in self.requests if why in (None, request.why)]
        return len(found), sum(request.size_bytes for request in found)

    def estimate_s(self, latency_s: float) -> float:
        """How long opening and the query would take at another latency, if nothing else changed."""
        return max(0.0, self.total_s - self.rounds * self.latency_s) + self.rounds * latency_s

    def __str__(self) -> str:
        lines = [f"{'at':>9} {'took':>9} {'':4} {'bytes':>10}  {'why':22}  what"]
        lines += [
            f"{r.began_s * 1e3:6.1f} ms {r.took_s * 1e3:6.1f} ms {r.kind:4} {r.size_bytes:>10,}  {r.why:22}  "
            + r.name
            + (f" from {r.offset:,}" if r.kind == "GET" else "")
            for r in self.requests
        ]
        lines.append("")
        for why in REASONS:
            requests, size = self.count(why)
            if why in (WARM_USED, WARM) and not self.warmed[1]:
                continue
            lines.append(f"{why:22} {requests:>6} requests {size:>12,} bytes")
        requests, size = self.count()
        lines.append(f"{'in all':22} {requests:>6} requests {size:>12,} bytes, {self.rounds} one after another")
        lines.append(
            f"{self.rows} rows; open after {self.opened_s * 1e3:.1f} ms, done after {self.total_s * 1e3:.1f} ms"
        )
        if self.warmed[1]:
            lines.append(f"warm: {self.warmed[0]} of {self.warmed[1]} queries succeeded")
        estimates = (f"{self.estimate_s(s) * 1e3:.0f} ms at {s * 1e3:g} ms a request" for s in LATENCIES_S)
        lines.append("estimated: " + ", ".join(estimates))
        return "\n".join(lines)


def _ended(request: IORequest) -> float:
    return request.began_s + request.took_s


@apsw_errors()
def explain_io(
    replica_url: str | os.PathLike[str], sql: str, parameters: apsw.Bindings = (), **options: object
) -> IOReport:
    """Run a query on a fresh view of a remote replica, and return the requests that opening and the query made.

    The view shares no cache with other connections of the process; options are those of `connect`. A replica in a
    folder or in memory makes no requests for pages. The query runs beside those of `warm`, whose end is waited for.
    Raises what `connect` and the query raise.
    """
    for name in ("poll_interval", "max_requests_per_s", "hydration_enabled"):
        if name in options:
            raise OptionError(f"explain_io sets {name} itself")
    check_names(options, "option")
    keywords = {**options, "replica_url": parse_replica_url(replica_url), "poll_interval": 0}
    keywords["max_requests_per_s"] = next(_UNBOUNDED)
    lease = registry.acquire(Options.collect({}, keywords))
    try:
        recorder = _Recorder()
        lease.replica.fetcher.requests.observer = recorder.add
        vfs = _RecordingVFS(f"litevfs-explain-{keywords['max_requests_per_s']}", keywords, recorder)
        try:
            rows, opened_s, total_s, warmed = _run(vfs, recorder, sql, parameters)
        finally:
            vfs.unregister()
            lease.replica.fetcher.requests.observer = None
        latency_s = lease.replica.fetcher.line.latency_s
        return IOReport(recorder.explained(), rows, opened_s, total_s, latency_s, warmed)
    finally:
        registry.release(lease)


def _run(
    vfs: _RecordingVFS, recorder: _Recorder, sql: str, parameters: apsw.Bindings
) -> tuple[int, float, float, tuple[int, int]]:
    """(rows of the result, seconds until the view was open, and until the last row; see `IOReport.warmed`)."""
    connection = apsw.Connection("explain", flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs.name)
    with closing(connection):
        connection.exec_trace = vfs.noted.note
        recorder.is_opening = False
        opened_s = recorder.now_s()
        rows = sum(1 for _ in connection.execute(sql, parameters))
        total_s = recorder.now_s()
        return rows, opened_s, total_s, (0, 0) if recorder.warming is None else recorder.warming.wait()


class _Recorder:
    """The requests of a replica, and the pages that SQLite reads of it."""

    def __init__(self) -> None:
        self.is_opening = True
        self.is_warming = False
        self.warming: Warming | None = None
        self._began = time.monotonic()
        self._reader = threading.get_ident()
        self._requests: list[tuple[Request, str]] = []
        # File name -> (offset, end) of frames that SQLite has read; and those that it has read for queries of `warm`.
        self._read: _Frames = {}
        self._warmed: _Frames = {}

    def now_s(self) -> float:
        """Seconds since opening began."""
        return time.monotonic() - self._began

    def add(self, request: Request) -> None:
        """See `Observer`."""
        thread = threading.current_thread()
        if thread.ident == self._reader:
            why = OPENING if self.is_opening else NEEDED
        elif thread.name == THREAD_NAME:
            why = WARM
        else:
            why = OPENING if self.is_opening and not self.is_warming else ""
        self._requests.append((request, why))

    def read(self, snapshot: Snapshot, pgno: int) -> None:
        """SQLite reads a page."""
        _note(self._read, snapshot, pgno)

    def read_warm(self, snapshot: Snapshot, pgno: int) -> None:
        """SQLite reads a page for a query of `warm`."""
        _note(self._warmed, snapshot, pgno)

    def explained(self) -> tuple[IORequest, ...]:
        """The requests by their begin, with the reason of each."""
        return tuple(
            IORequest(
                request.began - self._began,
                request.took_s,
                request.kind,
                request.name,
                request.offset,
                request.size_bytes,
                self._why(request, why),
            )
            for request, why in sorted(self._requests, key=lambda made: made[0].began)
        )

    def _why(self, request: Request, known: str) -> str:
        is_used = _holds(self._read, request)
        if known == WARM or (not known and not is_used and _holds(self._warmed, request)):
            return WARM_USED if is_used else WARM
        return known or (USED if is_used else UNUSED)


def _note(frames: _Frames, snapshot: Snapshot, pgno: int) -> None:
    number = snapshot.file_number(pgno)
    if number:
        _, offset, size = snapshot.place(pgno)
        file = snapshot.files[number]
        frames.setdefault(f"{file.level}/{file.name}", set()).add((offset, offset + size))


def _holds(frames: _Frames, request: Request) -> bool:
    """Whether the answer to a request held one of the frames."""
    end = request.offset + request.size_bytes
    return any(start < end and stop > request.offset for start, stop in frames.get(request.name, ()))


class _RecordingSession(Session):
    """A session that tells which pages SQLite reads."""

    recorder: _Recorder

    def read(self, amount: int, offset: int) -> bytes:
        """See `Session.read`."""
        snapshot = self.snapshot
        if snapshot.page_size:
            self.recorder.read(snapshot, offset // snapshot.page_size + 1)
        return super().read(amount, offset)


class _RecordingVFS(SessionVFS):
    """Opens the one replica, with a session that tells what is read."""

    def __init__(self, name: str, keywords: dict[str, object], recorder: _Recorder) -> None:
        self._keywords = keywords
        self._recorder = recorder
        self.noted = Noted()
        super().__init__(name)

    def open_session(self, name: str | apsw.URIFilename | None) -> Session:
        """See `SessionVFS.open_session`."""
        session = _RecordingSession(Options.collect({}, self._keywords), make_apsw_error)
        session.recorder = recorder = self._recorder
        session.on_warm_read = recorder.read_warm
        recorder.is_warming = bool(session.options.warm)
        try:
            start_beside(session, self.noted.find)
        except BaseException:
            session.close()
            raise
        recorder.warming = session.warming
        return session


def draw(report: IOReport, path: str | os.PathLike[str]) -> None:
    """Draw the timeline to a PNG file. Raises OptionError without matplotlib (the extra `charts`)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("no matplotlib to draw with", hint="pip install 'litevfs[charts]'") from error
    colors = dict(zip(REASONS, ("#b0b0b0", "#ff7f0e", "#1f77b4", "#8c564b", "#2ca02c", "#98df8a"), strict=True))
    figure = Figure(figsize=(8.0, 1.5 + 0.12 * len(report.requests)), dpi=110)
    axes = figure.subplots()
    for why, color in colors.items():
        bars = [(i, r) for i, r in enumerate(report.requests) if r.why == why]
        if not bars and why in (WARM_USED, WARM):
            continue
        axes.barh(
            [i for i, _ in bars],
            [r.took_s * 1e3 for _, r in bars],
            left=[r.began_s * 1e3 for _, r in bars],
            color=color,
            label=f"{why}: {report.count(why)[0]}",
        )
    axes.invert_yaxis()
    axes.set_xlabel("ms since opening began")
    axes.set_ylabel("request")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(path))

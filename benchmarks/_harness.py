"""What the benchmarks share: the database and its replica, competitors in processes of their own, medians and tables.

Knows nothing of what is measured. The database is made once and kept in the system's folder for temporary files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import apsw

from litevfs.ltx import Encoder, Header, format_file_name

PAGE_SIZE = 4096  # bytes
ROWS = 400_000
"""Rows of the full-size database, whose LTX file has 41 MB."""
FULL_SIZE_BYTES = 86_802_432
SMALL_ROWS = 10_000
ROWS_PER_BATCH = 200
"""Rows that share a value of the indexed column; they lie scattered over the whole table."""
TIMESTAMP_MS = 1_767_225_600_000  # of the replica's one transaction: 2026-01-01
WORKER = Path(__file__).with_name("_worker.py")
ANSWER_TIMEOUT_S = 600.0
EXIT_TIMEOUT_S = 5.0
PEER = "litestream-vfs"
"""Litestream's own VFS, as tables call it: the name of its package."""

_CONTENT_VERSION = 1  # part of the cache folder's name: raise it when the content changes
_WORDS = 3000
_PHRASES = 6


# --- the database -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OneFile:
    """A database and a replica of it that is one LTX snapshot, made in a `cached_folder` of their own."""

    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "database.db"

    @property
    def ltx_file(self) -> Path:
        """The replica's only file."""
        return self.folder / "snapshot.ltx"

    @property
    def sizes(self) -> str:
        """Of both, for a title."""
        return " and ".join(
            f"{path.stat().st_size / 1e6:.3g} MB of {kind}"
            for path, kind in ((self.database, "SQLite"), (self.ltx_file, "LTX"))
        )

    def make(self, schema: str, fill: Callable[[apsw.Connection], object], page_size: int) -> None:
        """Make both, with what `fill` does in one transaction."""
        with closing(apsw.Connection(str(self.database))) as connection:
            connection.execute(f"PRAGMA page_size={page_size}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
            connection.execute(schema)
            with connection:
                fill(connection)
            connection.execute("VACUUM")
        write_snapshot(self.ltx_file, self.database.read_bytes(), page_size)

    def answer(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> str:
        """A digest of what SQLite itself says, on the local file."""
        return digest([answer_on(self.database, sql, parameters)])


def answer_on(path: Path, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> Any:
    """What SQLite itself says, on a local file."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return connection.execute(sql, parameters).get


@dataclass(frozen=True, slots=True)
class Dataset:
    """A database file in rollback-journal mode, its copy in WAL mode, and a replica of it that is one LTX snapshot."""

    rows: int
    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite file, in rollback-journal mode."""
        return self.folder / "rollback.db"

    @property
    def wal_database(self) -> Path:
        """The same in WAL mode."""
        return self.folder / "wal.db"

    @property
    def replica_url(self) -> str:
        """The replica as a folder."""
        return f"file://{self.folder}/replica"

    @property
    def ltx_file(self) -> Path:
        """The replica's only file."""
        return self.folder / "replica" / "ltx" / "9" / format_file_name(1, 1)

    @property
    def batches(self) -> int:
        """Different values of the indexed column `batch`, from 0 on."""
        return self.rows // ROWS_PER_BATCH

    def answer(self, sql: str, parameters: Sequence[object] = ()) -> Any:
        """What SQLite itself says, on the local file."""
        return answer_on(self.database, sql, parameters)


def dataset(rows: int) -> Dataset:
    """The benchmark database with `rows` rows, made on first use."""
    folder = cached_folder(f"orders-{rows}-v{_CONTENT_VERSION}", lambda folder: _make_dataset(Dataset(rows, folder)))
    return Dataset(rows, folder)


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills once and for all; whole or not there at all."""
    caches = Path(tempfile.gettempdir()) / f"litevfs-benchmarks-{os.getuid()}"
    caches.mkdir(mode=0o700, exist_ok=True)
    folder = caches / name
    if not folder.exists():
        print(f"making {folder} ...", file=sys.stderr)
        unfinished = Path(tempfile.mkdtemp(dir=caches))
        try:
            make(unfinished)
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # nor has another process just made it
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _make_dataset(target: Dataset) -> None:
    with closing(apsw.Connection(str(target.database))) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=DELETE; PRAGMA synchronous=OFF")
        connection.execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, batch INTEGER, customer TEXT, amount INTEGER, note TEXT)"
        )
        with connection:
            connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", _rows(target))
            connection.execute("CREATE INDEX orders_by_batch ON orders (batch)")
    shutil.copyfile(target.database, target.wal_database)
    with closing(apsw.Connection(str(target.wal_database))) as connection:
        connection.pragma("journal_mode", "wal")
    target.ltx_file.parent.mkdir(parents=True)
    write_snapshot(target.ltx_file, target.database.read_bytes(), PAGE_SIZE)


def _rows(target: Dataset) -> Iterable[tuple[int, int, str, int, str]]:
    """Text that compresses to half its size, as that of real rows does: most of a note is one of few phrases."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(_WORDS)]
    phrases = [" ".join(rng.choices(words, k=21)) for _ in range(_PHRASES)]
    for i in range(target.rows):
        note = f"{rng.choice(phrases)} {' '.join(rng.choices(words, k=3))}"
        yield i, i % target.batches, " ".join(rng.choices(words, k=2)), rng.randrange(100_000), note


def write_snapshot(path: Path, database: bytes, page_size: int) -> None:
    """Write `database` as an LTX snapshot with TXID 1."""
    commit = len(database) // page_size
    encoder = Encoder(Header(page_size=page_size, commit=commit, min_txid=1, max_txid=1, timestamp_ms=TIMESTAMP_MS))
    with path.open("wb") as file:
        file.write(encoder.begin())
        for i in range(commit):
            file.write(encoder.page(i + 1, database[i * page_size : (i + 1) * page_size]))
        file.write(encoder.finish())


# --- competitors ------------------------------------------------------------------------------------------------------


class CompetitorError(Exception):
    """A competitor could not do what it was asked."""


class Competitor:
    """One way to read the database, in a process of its own (Litestream's VFS reads its environment when it starts).

    `kind` is "native", "litevfs", "peer" (Litestream's VFS) or "download"; `target` a path or a replica URL. What it
    understands is in `_worker.py`. The process ends with the `with` block.
    """

    def __init__(
        self, kind: str, target: str, environment: Mapping[str, str] | None = None, *, name: str | None = None
    ) -> None:
        self.kind = kind
        self.name = name or kind  # in tables and messages
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), kind, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment() | dict(environment or {}) | {"LITESTREAM_REPLICA_URL": target},
            text=True,
        )
        try:
            self.sqlite = str(self._answer()["sqlite"])
        except BaseException:
            self.close()
            raise

    def call(self, do: str, **arguments: object) -> dict[str, Any]:
        """One command and its answer. Raises CompetitorError with what the process says, or when it dies."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def timed(self, sql: str, parameters: Sequence[Sequence[object]] = ((),)) -> tuple[float, str]:
        """(seconds, digest of the answers) of running `sql` once for each of `parameters`."""
        answer = self.call("run", sql=sql, parameters=parameters)
        return answer["seconds"], answer["digest"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise CompetitorError(f"{self.name}: " + ("the process ended" if ready else "no answer"))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CompetitorError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill() if self.kind == "peer" else self._hang_up()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()

    def _hang_up(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __enter__(self) -> Competitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer a competitor (the peer cannot use AWS_CA_BUNDLE either)."""
    steering = ("AWS_", "LITESTREAM_", "LITEVFS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    root = str(Path(__file__).resolve().parent.parent)
    return inherited | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def start_peer(target: str, environment: Mapping[str, str] | None = None) -> Competitor | None:
    """Litestream's VFS, or None and a message where it is not installed or does not load."""
    try:
        return Competitor("peer", target, environment, name=PEER)
    except CompetitorError as error:
        print(f"without Litestream's VFS: {error}")
        return None


def digest(answers: object) -> str:
    """Equal for equal answers, whichever process has them."""
    return hashlib.sha256(repr(answers).encode()).hexdigest()


def assert_equal(case: str, digests: Mapping[str, str]) -> None:
    """All competitors gave the same answers, or the measurement means nothing. Raises AssertionError."""
    if len(set(digests.values())) != 1:
        raise AssertionError(f"{case}: the answers differ: {digests}")


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """One row of a table."""

    case: str
    values: dict[str, str]  # column -> text
    goal: str = ""
    met: bool | None = None  # None: no goal, or not at this size
    samples: Any = None  # all measurements, for --json


class Samples:
    """Measurements by case and competitor."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, list[float]]] = {}

    def add(self, case: str, competitor: str, value: float) -> None:
        """One more measurement."""
        self.all.setdefault(case, {}).setdefault(competitor, []).append(value)

    def median(self, case: str, competitor: str) -> float | None:
        """The median, or None where nothing was measured."""
        values = self.all.get(case, {}).get(competitor)
        return median(values) if values else None


def seconds(value: float | None) -> str:
    """A time in the unit that suits it."""
    if value is None:
        return "-"
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(ours: float | None, theirs: float | None) -> str:
    """How many times theirs ours is."""
    return "-" if ours is None or not theirs else f"{ours / theirs:.3g}x"


def print_table(title: str, results: Sequence[Result]) -> None:
    """Results as a Markdown table."""
    columns = list(dict.fromkeys(name for result in results for name in result.values))
    lines = [["", *columns, "goal", "met"]]
    for result in results:
        met = {True: "yes", False: "NO", None: ""}[result.met]
        lines.append([result.case, *(result.values.get(name, "") for name in columns), result.goal, met])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n{title}\n")
    for line in lines:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")
    print(flush=True)


# --- the command line -------------------------------------------------------------------------------------------------


def parse_arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What every benchmark takes: `small`, `json`, and `charts`, the folder for what `_chart.py` draws."""
    return argument_parser(description).parse_args(argv)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what every benchmark takes, for one that takes more."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="a small database and few rounds: works, proves nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too, with all measurements")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="draw charts there, PNG files, by matplotlib")
    return parser


def report(title: str, results: Sequence[Result], arguments: argparse.Namespace) -> None:
    """Print the table and write the JSON file if one is wanted."""
    print_table(title, results)
    write_json(title, results, arguments)


def write_json(title: str, results: Sequence[Result], arguments: argparse.Namespace) -> None:
    """Write the JSON file if one is wanted."""
    if arguments.json:
        document = {
            "title": title,
            "small": arguments.small,
            "python": platform.python_version(),
            "sqlite": apsw.sqlite_lib_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "results": [{name: getattr(result, name) for name in Result.__slots__} for result in results],
        }
        arguments.json.write_text(json.dumps(document, indent=2, default=str) + "\n")

"""The options of `litevfs.options` as flags of a command: `poll_interval` is `--poll-interval`.

A flag that is not given sets nothing, so that the environment and the defaults apply.
"""

from __future__ import annotations

import argparse
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from types import FrameType
from typing import Any

import apsw

import litevfs
from litevfs.errors import LitevfsError, OptionError
from litevfs.files.fetch import Fetcher
from litevfs.options import SPECS, Options, OptionSpec
from litevfs.replica_clients.nearby import hint_of, replicas_near
from litevfs.texts import parse_queries, parse_rate
from litevfs.units import (
    format_timestamp,
    parse_bool,
    parse_duration_s,
    parse_moment_ms,
    parse_size_bytes,
    parse_timestamp_ms,
)

STORAGE_OPTIONS = frozenset({"read_timeout"})
"""The options that a command needs which only reads files."""
_NO_FLAGS = frozenset({"replica_url", "keep_open"})
"""The URL is an argument of its own; no command opens one connection after another."""
_URL = re.compile(r"[a-z][a-z0-9+]*://\S*", re.IGNORECASE)
_DOT_COMMAND = re.compile(r"\.[a-z]+( .*)?", re.IGNORECASE)
_LOOK_AROUND_S = 5.0
_METAVARS: dict[Callable[[object], object], str] = {
    parse_duration_s: "DURATION",
    parse_size_bytes: "SIZE",
    parse_timestamp_ms: "TIME",
    parse_rate: "RATE",
}


def add_url(parser: argparse.ArgumentParser, name: str = "url") -> argparse.Action:
    """The replica as a positional argument."""
    text = "the replica: file:///path, s3://bucket/path, or a folder"
    return parser.add_argument(name, metavar=name.upper(), help=text)


def add_sql(parser: argparse.ArgumentParser, text: str) -> None:
    """The SQL as a positional argument, after the URL."""
    parser.add_argument("sql", metavar="SQL", type=_sql, help=text)


def _sql(text: str) -> str:
    """The text, if it can be SQL. Raises ArgumentTypeError for what a person types in its place."""
    if _URL.fullmatch(text.strip()):
        raise argparse.ArgumentTypeError(f"a URL in the place of the SQL: {text}; hint: the URL comes first")
    if _DOT_COMMAND.fullmatch(text.strip()):
        raise argparse.ArgumentTypeError(f"no SQL: {text}; hint: 'litevfs shell URL' knows such commands")
    return text


class TakesPlaceOf(argparse.Action):
    """A flag with values; where it is given, the `positionals` may be left out (they are None then).

    Unlike positional arguments with `nargs="?"`, these may stand anywhere between flags.
    """

    def __init__(self, *args: Any, positionals: Collection[argparse.Action], **options: Any) -> None:
        super().__init__(*args, **options)
        self._positionals = positionals

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Note the values."""
        setattr(namespace, self.dest, values)
        for action in self._positionals:
            action.required = False


def add_options(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """A flag for each option of the table, or for those named in `only`."""
    group = parser.add_argument_group(
        "options of the replica",
        "Each also has an environment variable: LITEVFS_READ_TIMEOUT for --read-timeout, and so on.",
    )
    for spec in SPECS:
        if spec.name not in _NO_FLAGS and (only is None or spec.name in only):
            _add_flag(group, spec)


def _add_flag(group: argparse._ArgumentGroup, spec: OptionSpec) -> None:
    flag = "--" + spec.name.replace("_", "-")
    default = _default_text(spec)
    text = (spec.help + (f" [{default}]" if default else "")).replace("%", "%%")
    if spec.parse is parse_bool:
        group.add_argument(flag, dest=spec.name, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    if spec.parse is parse_queries:
        text += "; may be repeated"
        group.add_argument(flag, dest=spec.name, metavar="SQL", action="append", help=text)
        return
    metavar = _METAVARS.get(spec.parse, spec.name.rpartition("_")[2].upper())
    parse = spec.parse
    if parse is parse_timestamp_ms:  # times relative to now are allowed only on a command line
        parse, text = _parse_moment, f"{text}: RFC 3339, or for example '5 minutes ago'"
    group.add_argument(flag, dest=spec.name, metavar=metavar, type=checked(parse), help=text)


def _default_text(spec: OptionSpec) -> str:
    if spec.default is None or spec.default == "":
        return ""
    if spec.parse is parse_bool:
        return "yes" if spec.default else "no"
    if spec.parse is parse_duration_s:
        return f"{spec.default:g}s"
    if spec.parse is parse_size_bytes:
        unit, name = next(
            (u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B")) if spec.default >= u
        )
        return f"{spec.default / unit:g}{name}"
    return str(spec.default)


def _parse_moment(text: object) -> str:
    return format_timestamp(parse_moment_ms(str(text), now_ms=int(time.time() * 1000)))


def checked(parse: Callable[[object], object]) -> Callable[[str], str]:
    """A type for argparse: the unchanged text, refused at once if `parse` refuses it."""

    def check(text: str) -> str:
        try:
            parsed = parse(text)
        except OptionError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return str(parsed) if parse is _parse_moment else text  # "5 minutes ago" counts from this moment

    return check


def given_options(args: argparse.Namespace) -> dict[str, object]:
    """The options that the command line sets, by the names of the table."""
    values = {spec.name: getattr(args, spec.name, None) for spec in SPECS if spec.name != "replica_url"}
    return {name: value for name, value in values.items() if value is not None}


def collect_options(args: argparse.Namespace, url: str | None = None) -> Options:
    """All options of the replica at `url` (default: `args.url`): flags, environment, defaults. Raises OptionError."""
    return Options.of(args.url if url is None else url, given_options(args))


def connect(args: argparse.Namespace, **defaults: object) -> apsw.Connection:
    """A connection to `args.url` with the given options; `defaults` apply to those not given."""
    options: dict[str, Any] = defaults | given_options(args)
    return litevfs.connect(args.url, **options)


def near_hint(args: argparse.Namespace, error: Exception) -> str:
    """What to add to an error about the empty replica at `args.url`: "; " and where others are near it, or ""."""
    with suppress(LitevfsError):
        options = collect_options(args)
        timeout_s = min(options.read_timeout_s, _LOOK_AROUND_S)
        with closing(litevfs.open_replica_client(options.replica_url, read_timeout_s=timeout_s)) as client:
            hint = hint_of(replicas_near(client))
        return f"; {hint}" if hint and hint not in str(error) else ""
    return ""


@contextmanager
def open_fetcher(args: argparse.Namespace, url: str | None = None) -> Iterator[Fetcher]:
    """Access to the files of the replica at `url` (default: `args.url`), until the `with` block ends."""
    options = collect_options(args, url)
    client = litevfs.open_replica_client(options.replica_url, read_timeout_s=options.read_timeout_s)
    with closing(Fetcher(client, read_timeout_s=options.read_timeout_s)) as fetcher, _closed_by_signals(fetcher):
        yield fetcher


@contextmanager
def _closed_by_signals(fetcher: Fetcher) -> Iterator[None]:
    """Let a signal that ends the command end requests too: the command waits for threads, and a storage may be silent.

    Leaves a signal unchanged that is ignored, or that ends the process without Python.
    """
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            if callable(previous):
                signal.signal(number, _closing(fetcher, previous))
                stack.callback(signal.signal, number, previous)
        yield


def _closing(fetcher: Fetcher, then: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        # In a thread: the interrupted code may hold a lock that closing needs.
        threading.Thread(target=fetcher.close, name="litevfs-close").start()
        then(number, frame)

    return handle

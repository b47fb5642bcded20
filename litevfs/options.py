"""Every option once: name, default, unit, parser, help. URI, keywords, environment and command line read this table.

A value may be given as text (`"250ms"`, `"10MB"`, `"true"`) or as the Python value it means (seconds, bytes, bool).
Precedence: URI parameter, keyword, environment, default.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from litevfs.errors import OptionError
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.texts import parse_queries, parse_rate, parse_replica_url, parse_text
from litevfs.units import format_timestamp, parse_bool, parse_duration_s, parse_size_bytes, parse_timestamp_ms

logger = logging.getLogger("litevfs.options")

SQLITE_URI_PARAMETERS = frozenset({"mode", "cache", "immutable", "nolock", "psow", "modeof", "vfs"})
"""Query parameters that SQLite itself understands (https://www.sqlite.org/uri.html); ignored."""


def _option(
    default: Any,
    parse: Callable[[object], Any],
    help_text: str,
    *,
    of_replica: Callable[[Options], object] | None,
    name: str = "",
    litestream_env: str = "",
    secret: bool = False,
) -> Any:
    """A row of the table. Connections share a replica only if `of_replica` gives the same for each; None: the option
    concerns the connection alone.
    """
    metadata = {
        "parse": parse,
        "help": help_text,
        "name": name,
        "litestream_env": litestream_env,
        "of_replica": of_replica,
    }
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one connection, parsed. Field names carry the unit; the option's own name does not."""

    replica_url: str = _option(
        "",
        parse_replica_url,
        "where the replica is: file:///path, s3://bucket/path, memory://name",
        litestream_env="LITESTREAM_REPLICA_URL",
        of_replica=lambda options: options.replica_url,
        secret=True,  # the given text may contain an encryption key
    )
    poll_interval_s: float = _option(
        1.0,
        parse_duration_s,
        "pause between looks for new transactions; 0 turns polling off",
        name="poll_interval",
        of_replica=lambda options: options.is_polling or options.is_fixed,  # the shortest counts
    )
    cache_size_bytes: int = _option(
        10_000_000,
        parse_size_bytes,
        "memory for pages and blocks, per replica and process",
        name="cache_size",
        of_replica=None,  # the largest counts
    )
    spill_size_bytes: int = _option(
        256_000_000,
        parse_size_bytes,
        "temporary file for what was read from remote storage and `cache_size` has no room for, per replica and "
        "process; made when needed, 0: none; no effect with `cache_dir`",
        name="spill_size",
        of_replica=lambda options: "" if options.cache_dir else options.spill_size_bytes,
    )
    cache_dir: str = _option(
        "",
        parse_text,
        "folder that keeps what was read from remote storage, over restarts and for every process; made if missing; "
        "no effect on local replicas",
        of_replica=lambda options: options.cache_dir,
    )
    cache_dir_size_bytes: int = _option(
        1_000_000_000,
        parse_size_bytes,
        "disk space of that folder; the least recently used goes first",
        name="cache_dir_size",
        of_replica=lambda options: bool(options.cache_dir) and options.cache_dir_size_bytes,
    )
    cache_dir_compress: bool = _option(
        False,
        parse_bool,
        "keep more in that folder by compressing it (the extra `compress`); reading from it takes longer",
        of_replica=lambda options: bool(options.cache_dir) and options.cache_dir_compress,
    )
    hydration_enabled: bool = _option(
        False,
        parse_bool,
        "copy the database into a local file in the background, and read from there",
        litestream_env="LITESTREAM_HYDRATION_ENABLED",
        of_replica=lambda options: options.hydration_enabled,
    )
    hydration_path: str = _option(
        "",
        parse_text,
        "that local file; a temporary one by default",
        litestream_env="LITESTREAM_HYDRATION_PATH",
        of_replica=lambda options: options.hydration_enabled and options.hydration_path,
    )
    txid: int | None = _option(
        None,
        parse_txid,
        "open the state after this transaction, fixed, without polling",
        of_replica=None,
    )
    timestamp_ms: int | None = _option(
        None,
        parse_timestamp_ms,
        "open the state as of this time, fixed, without polling",
        name="timestamp",
        of_replica=None,
    )
    open_timeout_s: float = _option(
        10.0,
        parse_duration_s,
        "how long opening waits for a replica's first complete state",
        name="open_timeout",
        of_replica=None,
    )
    read_timeout_s: float = _option(
        30.0,
        parse_duration_s,
        "bound on one page read, all retries included",
        name="read_timeout",
        of_replica=lambda options: options.read_timeout_s,
    )
    max_staleness_s: float | None = _option(
        None,
        parse_duration_s,
        "a transaction refuses to start when the replica could not be brought up to date for so long",
        name="max_staleness",
        of_replica=None,
    )
    prefetch: bool = _option(
        True,
        parse_bool,
        "read ahead when a scan is seen",
        of_replica=lambda options: options.prefetch,
    )
    warm: str = _option(
        "",
        parse_queries,
        "queries whose pages are fetched in parallel once the replica is open, with semicolons between them",
        of_replica=None,
    )
    verify: bool = _option(
        False,
        parse_bool,
        "read every LTX file whole and verify its checksum before a page of it is used; by default only files up to "
        "1 MiB",
        of_replica=lambda options: options.verify,
    )
    keep_open_s: float = _option(
        0.0,
        parse_duration_s,
        "how long the replica stays open, with its caches and polls, after the connection was closed: for programs "
        "that open a connection for each request",
        name="keep_open",
        of_replica=None,  # the longest counts
    )
    max_requests_per_s: float | None = _option(
        None,
        parse_rate,
        "requests a second of all replicas of the process that have this option together, shared fairly; no effect on "
        "local replicas",
        of_replica=lambda options: options.max_requests_per_s,
    )

    @property
    def is_fixed(self) -> bool:
        """Whether the connection sees one fixed state."""
        return self.txid is not None or self.timestamp_ms is not None

    @property
    def is_polling(self) -> bool:
        """Whether a poller refreshes the replica for the connection."""
        return self.poll_interval_s > 0 and not self.is_fixed

    def of_replica(self) -> tuple[object, ...]:
        """The options that a shared replica depends on; equal for connections that can share one."""
        return tuple(spec.of_replica(self) for spec in SPECS if spec.of_replica is not None)

    @classmethod
    def of(cls, replica_url: object, options: Mapping[str, object]) -> Options:
        """Options as a public function takes them: a URL or a path, and keywords. See `collect`.

        Raises ReplicaURLError, too.
        """
        return cls.collect({}, {**options, "replica_url": parse_replica_url(replica_url)})

    @classmethod
    def collect(
        cls,
        uri: Mapping[str, str],
        keywords: Mapping[str, object],
        environ: Mapping[str, str] | None = None,
    ) -> Options:
        """Options from all sources, the first that names one winning: `uri`, `keywords`, `environ` (os.environ).

        SQLite's own URI parameters are ignored. Raises OptionError for an unknown name or a bad value; a variable of
        the environment that is unknown may be another program's, so it is a warning.
        """
        environ = os.environ if environ is None else environ
        _check_uri_names(uri)
        check_names(keywords, "option")
        _warn_of_unknown_variables(environ)
        keywords, environ = _without_other_states(uri, keywords, environ)
        values: dict[str, Any] = {}
        for spec in SPECS:
            for source, value in spec.candidates(uri, keywords, environ):
                values[spec.field_name] = spec.parse_from(source, value)
                break
        options = cls(**values)
        if options.txid is not None and options.timestamp_ms is not None:
            raise OptionError("both txid and timestamp are given", hint="one of them fixes the state")
        return options


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One row of the table: an option's name, parser and description."""

    name: str
    field_name: str
    default: Any
    parse: Callable[[object], Any]
    help: str
    environment: tuple[str, ...]
    of_replica: Callable[[Options], object] | None

    def candidates(
        self, uri: Mapping[str, str], keywords: Mapping[str, object], environ: Mapping[str, str]
    ) -> Iterable[tuple[str, object]]:
        """(source, value) pairs in order of precedence; an empty environment variable counts as unset."""
        if self.name in uri:
            yield f"URI parameter {self.name}", uri[self.name]
        if keywords.get(self.name) is not None:
            yield f"option {self.name}", keywords[self.name]
        for variable in self.environment:
            if environ.get(variable):
                yield f"environment variable {variable}", environ[variable]

    def parse_from(self, source: str, value: object) -> Any:
        """The parsed value. Raises OptionError that names the source."""
        try:
            return self.parse(value)
        except OptionError as error:
            raise type(error)(f"{source}: {error.message}", hint=error.hint) from error


_STATE_VARIABLES = {"txid": "LITEVFS_TXID", "timestamp": "LITEVFS_TIMESTAMP"}


def _without_other_states(
    uri: Mapping[str, str], keywords: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """Keywords and environment without the state they fix, by either option, where an earlier source fixes one."""
    is_in_uri = any(name in uri for name in _STATE_VARIABLES)
    if is_in_uri:
        keywords = {name: value for name, value in keywords.items() if name not in _STATE_VARIABLES}
    if is_in_uri or any(keywords.get(name) is not None for name in _STATE_VARIABLES):
        environ = {name: value for name, value in environ.items() if name not in _STATE_VARIABLES.values()}
    return keywords, environ


def _specs() -> tuple[OptionSpec, ...]:
    specs = []
    for f in fields(Options):
        name = f.metadata["name"] or f.name
        own = f"LITEVFS_{name.upper()}"
        litestream = f.metadata["litestream_env"]
        environment = (own, litestream) if litestream else (own,)
        known = f.metadata
        specs.append(
            OptionSpec(name, f.name, f.default, known["parse"], known["help"], environment, known["of_replica"])
        )
    return tuple(specs)


SPECS = _specs()
"""The table, in the order of the documentation."""
OPTION_NAMES = tuple(spec.name for spec in SPECS)


def to_uri_text(name: str, value: object) -> str:
    """An option's value, given as any type it takes, as text for a URI that means the same. Raises OptionError."""
    spec = next(spec for spec in SPECS if spec.name == name)
    parsed = spec.parse_from(f"option {name}", value)
    if isinstance(value, str):
        return value
    if spec.parse is parse_duration_s:
        return f"{Decimal(parsed):f}s"  # never with an exponent
    if spec.parse is parse_timestamp_ms:
        return format_timestamp(parsed)
    return format_txid(parsed) if name == "txid" else str(parsed)


def hint_if_option(name: str) -> str | None:
    """What to do about a parameter of a replica URL that names an option, in whatever case; None if it names none."""
    name = name.lower().replace("-", "_")
    if name not in OPTION_NAMES:
        return None
    flag = name.replace("_", "-")
    return f"{name} is an option, no part of the replica's URL: give it beside the URL, {name}=... or --{flag}"


def check_names(names: Iterable[str], what: str) -> None:
    """Raise OptionError for the first name that is not an option, with the nearest one as a hint."""
    for name in names:
        if name not in OPTION_NAMES:
            raise OptionError(f"unknown {what} {name!r}", hint=_meant(name, OPTION_NAMES) or _KNOWN_HINT)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that an unknown one most likely stands for, in whatever case; None if it is like none."""
    folded = {each.lower(): each for each in names}
    begun = [each for each in folded if name and each.startswith(name.lower())]
    if begun:
        return folded[min(begun, key=lambda each: (len(each), each))]
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return folded[near[0]] if near else None


def first_of_equals(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The parameters of a URI for SQLite by name. Raises OptionError for an option that is named more than once.

    SQLite itself reads the first of equal parameters, and says nothing of the others.
    """
    found: dict[str, str] = {}
    for name, value in parameters:
        if name in found and name in OPTION_NAMES:
            hint = "put semicolons between the queries" if name == "warm" else "SQLite reads the first of them only"
            raise OptionError(f"URI parameter {name} is given more than once", hint=hint)
        found.setdefault(name, value)
    return found


_KNOWN_HINT = "known: " + ", ".join(OPTION_NAMES)
_WHOLE_HINT = "in a URI for SQLite, encode a replica URL of several parameters whole: urllib.parse.quote(url, safe='')"


def _check_uri_names(uri: Mapping[str, str]) -> None:
    """Raise OptionError for the first parameter that neither SQLite nor litevfs knows."""
    for name in uri:
        if name not in OPTION_NAMES and name not in SQLITE_URI_PARAMETERS:
            hint = _meant(name, (*OPTION_NAMES, *SQLITE_URI_PARAMETERS))
            if "?" in uri.get("replica_url", ""):  # its own parameters may have ended at an & that is not encoded
                hint = f"{hint} Or {_WHOLE_HINT}" if hint else _WHOLE_HINT
            raise OptionError(f"unknown URI parameter {name!r}", hint=hint or _KNOWN_HINT)


_PREFIX = "LITEVFS_"
_PASSWORDS = ("HTTP_PASSWORD", "NATS_PASSWORD", "NATS_TOKEN", "SFTP_PASSWORD", "WEBDAV_PASSWORD")
"""Variables that clients read, without the prefix."""
_VARIABLES = tuple(f"{_PREFIX}{name}" for name in (*map(str.upper, OPTION_NAMES), *_PASSWORDS))
_OF_OTHERS = ("LITEVFS_TEST_", "LITEVFS_CI_")
_warned: set[str] = set()


def _warn_of_unknown_variables(environ: Iterable[str]) -> None:
    """Log each variable that looks like an option and is none, once in a process."""
    for name in environ:
        if not name.startswith(_PREFIX) or name in _VARIABLES or name in _warned or name.startswith(_OF_OTHERS):
            continue
        _warned.add(name)
        near = nearest(name.removeprefix(_PREFIX), (known.removeprefix(_PREFIX) for known in _VARIABLES))
        hint = f"did you mean {_PREFIX}{near}?" if near else f"known: {', '.join(_VARIABLES)}"
        logger.warning("environment variable %s is unknown, so it has no effect; hint: %s", name, hint)


def _meant(name: str, names: Iterable[str]) -> str | None:
    near = nearest(name, names)
    return f"did you mean {near}?" if near else None

"""URLs of the storages beside S3, files and memory: text to a checked `Location` and back. Does no I/O.

Also owns where a file lies below a location, which is the same for all of them: `path/ltx/<level in decimal>/<name>`.
Source: Litestream 0.5, `litestream.go` (LTXLevelDir) and `replica_url.go`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from litevfs.errors import ReplicaURLError
from litevfs.ltx.names import parse_file_name
from litevfs.options import hint_if_option, nearest
from litevfs.replica_clients.base import LEVELS, LTXFileInfo

_LEVELS = frozenset(map(str, LEVELS))
_SAFE = "/-._~!$&'()*+,;=:@"
_SPOKEN_WITH_A_VOWEL = ("abs", "http", "https", "sftp")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a replica lies: the parts of its URL, decoded. Equal for URLs that mean the same replica."""

    scheme: str
    host: str  # a host, or the bucket or container that stands in its place
    path: str  # no slash at either end; "" is the root
    user: str = ""
    port: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)  # the known ones that the URL names

    @property
    def url(self) -> str:
        """The URL in its one spelling."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        port = "" if self.port is None else f":{self.port}"
        path = f"/{quote(self.path, safe=_SAFE)}" if self.path else ""
        query = urlencode(sorted(self.parameters.items()), safe=":/")
        return f"{self.scheme}://{user}{self.host}{port}{path}" + (f"?{query}" if query else "")

    @property
    def prefix(self) -> str:
        """What the keys of the replica start with."""
        return f"{self.path}/" if self.path else ""

    def folder(self, level: int) -> str:
        """The folder of `level`, with a slash at its end only."""
        return f"{self.prefix}ltx/{level}/"

    def key(self, file: LTXFileInfo) -> str:
        """Where `file` lies."""
        return f"{self.folder(file.level)}{file.name}"

    def parse_key(self, key: str) -> tuple[int, int, int] | None:
        """(level, min_txid, max_txid) of the file that lies there, None for any other key."""
        folder, _, name = key.removeprefix(f"{self.prefix}ltx/").rpartition("/")
        txids = parse_file_name(name)
        return None if txids is None or folder not in _LEVELS else (int(folder), *txids)


def parse_location(
    url: str, *, example: str, parameters: Iterable[str] = (), default_port: int | None = None, password_from: str = ""
) -> Location:
    """The location that `url` names. `password_from` says where a password comes from, as none may be in a URL.

    Raises ReplicaURLError, whose message repeats neither user nor password nor any parameter's value.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if "\0" in unquote(url):
        raise ReplicaURLError(f"{_a(scheme)} URL with a zero byte", hint=f"for example {example}")
    if parts.fragment:
        raise ReplicaURLError(f"{_a(scheme)} URL has no fragment", hint="write # in a path as %23")
    userinfo, _, _ = parts.netloc.rpartition("@")
    user, has_password, _ = userinfo.partition(":")
    if has_password:
        raise ReplicaURLError(
            f"{_a(scheme)} URL with a password, which logs and process lists would show", hint=password_from or None
        )
    host, port = _host_and_port(parts, example)
    if not host:
        raise ReplicaURLError(f"{_a(scheme)} URL that names no place", hint=f"for example {example}")
    path = clean_path(parts.path)
    known = _parameters(parts.query, scheme, list(parameters))
    return Location(scheme, host, path, unquote(user), None if port == default_port else port, known)


def clean_path(path: str) -> str:
    """The path of a replica's URL, decoded, without `.`, `..`, doubled slashes, and slashes at its ends.

    Source: Litestream 0.5, `replica_url.go` (ParseReplicaURLWithQuery), for every storage.
    """
    return posixpath.normpath("/" + unquote(path)).strip("/")


def _host_and_port(parts: SplitResult, example: str) -> tuple[str, int | None]:
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ReplicaURLError(
            f"{_a(parts.scheme)} URL with a port that is none", hint=f"for example {example}"
        ) from None
    return (f"[{host}]" if ":" in host else host), port


def _parameters(query: str, scheme: str, known: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}" if known else None
            raise ReplicaURLError(f"unknown parameter {name!r} of {_a(scheme)} URL", hint=hint_if_option(name) or hint)
        if name in found:
            raise ReplicaURLError(f"parameter {name!r} of a {scheme} URL is given twice")
        if value:
            found[name] = value
    return found


def _a(scheme: str) -> str:
    """The scheme with its article: "an sftp", "a gs"."""
    return f"{'an' if scheme in _SPOKEN_WITH_A_VOWEL else 'a'} {scheme}"

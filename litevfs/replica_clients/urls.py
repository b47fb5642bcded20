"""Replica URLs: which client a URL means. Owns the table of schemes; each scheme's details are its client's.

`s3://bucket/path?...`, `file:///absolute/path` or just a path, `memory://name`, and those of README's table. An
installed package adds a scheme, to the command too, by an entry point of the group `litevfs.replica_clients`: its name
is the scheme, its object a `ClientFactory`.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from litevfs.errors import ReplicaURLError
from litevfs.options import hint_if_option
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, memory_store
from litevfs.replica_clients.tracing import traced
from litevfs.texts import parse_replica_url

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from typing_extensions import TypeIs

LITESTREAM_SCHEMES = frozenset({"abs", "file", "gs", "nats", "oss", "s3", "sftp", "webdav", "webdavs"})
"""The schemes that Litestream 0.5 knows."""
ENTRY_POINTS = "litevfs.replica_clients"
"""The group of entry points by which packages add schemes."""


class ClientFactory(Protocol):
    """Makes the clients of a scheme."""

    def __call__(self, url: str, *, read_timeout_s: float) -> ReplicaClient:
        """The client of `url`, made without any I/O. Raises ReplicaURLError for a URL it does not understand."""
        ...


_factories: dict[str, ClientFactory] = {}


def register_scheme(scheme: str, factory: ClientFactory) -> None:
    """Let `factory` make the clients of `scheme://...`; replaces the factory the scheme had.

    Its clients' `url` has to be equal for URLs that mean the same replica (see `canonical_url`).
    """
    _factories[scheme.lower()] = factory


def open_replica_client(url: str | os.PathLike[str], *, read_timeout_s: float = 30.0) -> ReplicaClient:
    """The client of the replica at `url`; nothing is read yet. A text without `://` is a path.

    `read_timeout_s` bounds each wait for a storage at the other end of a network. Raises ReplicaURLError.
    """
    url = parse_replica_url(url)
    scheme = _scheme(url)
    if not scheme:
        _refuse_half_a_scheme(url)
        return traced(FileReplicaClient(_path(url)))
    _refuse_unreadable(url)
    factory = _factories.get(scheme.lower()) or _installed_factory(scheme.lower())
    if factory is None:
        raise _unknown(scheme)
    return traced(factory(url, read_timeout_s=read_timeout_s))


def is_client(replica: object) -> TypeIs[ReplicaClient]:
    """Whether an argument that may be a client is one, and no URL or path."""
    return hasattr(replica, "list_files")


def _installed_factory(scheme: str) -> ClientFactory | None:
    """The factory of an installed package for a scheme that is none of ours; registered from then on."""
    for entry in _entry_points(scheme):
        try:
            factory: ClientFactory = entry.load()
        except Exception as exc:  # the import of a foreign package may raise anything
            package = entry.dist.name if entry.dist else "a package"
            message = f"{package} offers {scheme}:// and cannot be imported: {type(exc).__name__}: {exc}"
            raise ReplicaURLError(message, hint="reinstall it, or look for a version that fits this litevfs") from exc
        register_scheme(scheme, factory)
        return factory
    return None


def _entry_points(scheme: str | None = None) -> EntryPoints:
    """Those that installed packages have, for a scheme or all."""
    from importlib.metadata import entry_points  # loads `email`, which most processes have no use for

    return entry_points(group=ENTRY_POINTS) if scheme is None else entry_points(group=ENTRY_POINTS, name=scheme)


def _scheme(url: str) -> str:
    """The scheme as written; empty for a path."""
    if url.startswith("file:"):  # with one slash too, as SQLite and browsers read it
        return "file"
    scheme, separator, _ = url.partition("://")
    return scheme if separator else ""


def canonical_url(url: str) -> str:
    """The one spelling of all URLs that mean the same replica; no credentials in it. Raises ReplicaURLError."""
    client = open_replica_client(url)
    try:
        return client.url
    finally:
        client.close()


def absolute_url(url: str) -> str:
    """A URL that keeps the meaning of `url` when the current folder and the environment change.

    Unlike `canonical_url`, it keeps every part of `url`. Raises ReplicaURLError.
    """
    scheme = _scheme(url).lower()
    if scheme in ("", "file"):
        return canonical_url(url)
    endpoint = os.environ.get("LITESTREAM_S3_ENDPOINT")
    if scheme != "s3" or not endpoint:
        return url
    from litevfs.replica_clients.s3.hosts import parse_host

    parts = urlsplit(url)
    if parse_host(parts.netloc).endpoint:  # the endpoint is the provider's, which the host names
        return url
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    named = [(name, value) for name, value in parameters if value or name.lower() != "endpoint"]
    if any(name.lower() == "endpoint" for name, _ in named):
        return url
    return parts._replace(query=urlencode([*named, ("endpoint", endpoint)])).geturl()


def _file_client(url: str, *, read_timeout_s: float) -> ReplicaClient:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ReplicaURLError(
            "a file URL with a host",
            hint="file:///absolute/path has three slashes; a relative path is written without file://",
        )
    _refuse_query(url, "file")
    return FileReplicaClient(_path(unquote(parts.path)))


def _memory_client(url: str, *, read_timeout_s: float) -> ReplicaClient:
    _refuse_query(url, "memory")
    parts = urlsplit(url)
    name = unquote(parts.netloc + parts.path).strip("/")
    if not name:
        raise ReplicaURLError("a memory URL without a name", hint="for example memory://test")
    return MemoryReplicaClient(memory_store(name))


def _imported(module: str, name: str) -> ClientFactory:
    """A factory that imports its client when it is needed: botocore takes as long to load as everything else here."""

    def make(url: str, *, read_timeout_s: float) -> ReplicaClient:
        client: ClientFactory = getattr(import_module(f"litevfs.replica_clients.{module}"), name)
        return client(url, read_timeout_s=read_timeout_s)

    return make


def _refuse_unreadable(url: str) -> None:
    """Raise ReplicaURLError where `urlsplit` finds no host; without its words, which may quote credentials."""
    try:
        urlsplit(url)
    except ValueError:
        raise ReplicaURLError(
            "a replica URL whose host cannot be read", hint="an IPv6 address stands in brackets: [::1]"
        ) from None


def _refuse_half_a_scheme(path: str) -> None:
    """Raise ReplicaURLError for `s3:/bucket/app` and `s3//bucket/app`: slips, and hardly names of folders."""
    for separator, lack in ((":", ": without two slashes after it"), ("//", " without a colon after it")):
        scheme, found, _ = path.partition(separator)
        if found and scheme.lower() in _factories:
            hint = f"write {scheme}://..., or ./{scheme}{separator[0]}... for a folder of that name"
            raise ReplicaURLError(f"{scheme}{lack}", hint=hint)


def _path(path: str) -> str:
    if not path or "\0" in path:
        raise ReplicaURLError("a replica URL without a path", hint="for example file:///var/lib/replica or ./replica")
    return path


def _refuse_query(url: str, scheme: str) -> None:
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ReplicaURLError(
            f"a {scheme} URL has no parameters",  # not shown: they may be credentials
            hint=hint_if_option(parts.query.partition("=")[0]) or "write ? in a path as %3F and # as %23",
        )


def _unknown(scheme: str) -> ReplicaURLError:
    schemes = {*_factories, *(entry.name for entry in _entry_points())}
    known = ", ".join(sorted(schemes))
    if scheme.lower() in LITESTREAM_SCHEMES:
        return ReplicaURLError(f"replicas at {scheme}:// are not supported yet", hint=f"supported are {known}")
    near = difflib.get_close_matches(scheme.lower(), schemes, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}://?" if near else f"supported are {known}"
    return ReplicaURLError(f"unknown scheme {scheme!r} of a replica URL", hint=hint)


_factories |= {
    "file": _file_client,
    "memory": _memory_client,
    "nats": _imported("nats", "NATSReplicaClient"),
    "gs": _imported("gs", "GSReplicaClient"),
    "sftp": _imported("sftp", "SFTPReplicaClient"),
    **dict.fromkeys(("s3", "oss"), _imported("s3.client", "S3ReplicaClient")),
    **dict.fromkeys(("abs", "az"), _imported("azure", "AzureReplicaClient")),
    **dict.fromkeys(("http", "https"), _imported("http.client", "HTTPReplicaClient")),
    **dict.fromkeys(("webdav", "webdavs"), _imported("webdav", "WebDAVReplicaClient")),
}

if TYPE_CHECKING:  # the classes above, for type checkers, and for tools that bundle what a program imports
    from litevfs.replica_clients.azure import AzureReplicaClient
    from litevfs.replica_clients.gs import GSReplicaClient
    from litevfs.replica_clients.http.client import HTTPReplicaClient
    from litevfs.replica_clients.nats import NATSReplicaClient
    from litevfs.replica_clients.s3.client import S3ReplicaClient
    from litevfs.replica_clients.sftp import SFTPReplicaClient
    from litevfs.replica_clients.webdav import WebDAVReplicaClient

    _by_others: tuple[ClientFactory, ...] = (
        AzureReplicaClient,
        GSReplicaClient,
        HTTPReplicaClient,
        NATSReplicaClient,
        S3ReplicaClient,
        SFTPReplicaClient,
        WebDAVReplicaClient,
    )

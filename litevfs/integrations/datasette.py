"""Datasette's plugin: replicas as databases to browse, by its configuration.

    {"plugins": {"litevfs": {"databases": {"app": {"url": "s3://bucket/app", "poll_interval": "250ms"}}}}}

Owns the database object that Datasette queries, the line under each page, and `?_txid=`: the page as of that
transaction.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs, quote

import rich.traceback
from datasette import handle_exception, hookimpl
from datasette.database import Database
from datasette.utils import check_connection, tilde_decode
from datasette.utils.asgi import NotFound
from jinja2 import ChoiceLoader, DictLoader, PrefixLoader

import litevfs.dbapi
from litevfs.errors import LitevfsError, OptionError, TXIDNotFoundError
from litevfs.integrations.asgi import send_text
from litevfs.ltx.names import parse_txid
from litevfs.options import Options, check_names
from litevfs.replica_clients.urls import canonical_url

logger = logging.getLogger("litevfs.integrations.datasette")

PLUGIN = "litevfs"
_FOOTER = (
    '{% include "litevfs-inner:_footer.html" %}'
    "{% if litevfs_state %}&middot; <span class=litevfs>{{ litevfs_state }}</span>{% endif %}"
)

_txid: ContextVar[str | None] = ContextVar("litevfs_datasette_txid", default=None)
"""The value of the request's `?_txid=`."""
_page: ContextVar[str | None] = ContextVar("litevfs_datasette_page", default=None)
"""The first part of the request's path, a database's route on its own pages; None outside of a request."""
RETRY_S = 30.0
"""For so long pages of others do not wait again for a replica that could not be read."""


class ReplicaDatabase(Database):
    """A replica. Each thread of Datasette has a connection of its own; all of them share one replica."""

    def __init__(self, datasette: Any, url: str, options: Mapping[str, Any]) -> None:
        super().__init__(datasette, is_mutable=True)  # rows change, though not through Datasette
        self._url = url
        self._options = dict(options)
        self._opened: list[Any] = []
        self._missing_until = 0.0  # by `time.monotonic`

    @property
    def path(self) -> str | None:
        """None, as there is no file; with `--crossdb`, what makes Datasette's `ATTACH 'file:<path>?mode=ro'` open the
        replica. It holds no URL: Datasette shows paths.
        """
        if not self.ds.crossdb or self.name is None:
            return None
        label = quote(self.name, safe="")
        litevfs.register_stdlib(f"litevfs-datasette-{label}", **{**self._options, "replica_url": self._url})
        return f"{label}?vfs=litevfs-datasette-{quote(label)}#"  # what follows counts for nothing

    @path.setter
    def path(self, value: object) -> None:
        """Datasette sets it to None."""

    def connect(self, write: bool = False) -> Any:
        """A connection; SQLite refuses a write and says that a replica is read-only."""
        connection = self._open()
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        """Close all connections."""
        super().close()
        while self._opened:
            self._opened.pop().close()

    def _open(self, **state: str) -> Any:
        return litevfs.dbapi.connect(
            self._url, check_same_thread=False, isolation_level=None, **{**self._options, **state}
        )

    async def execute_fn(self, fn: Callable[[Any], Any]) -> Any:
        """Run `fn(connection)` in a thread: on the newest state, or the one that the request names."""
        return await self._run(super().execute_fn, fn)

    async def _execute_fn(self, fn: Callable[[Any], Any]) -> Any:
        """Like `execute_fn`; `execute` calls this from Datasette 1.0 on."""
        return await self._run(super()._execute_fn, fn)

    async def _run(self, run: Callable[[Any], Awaitable[Any]], fn: Callable[[Any], Any]) -> Any:
        """Run `fn`. Where a page of something else asks, or the start, a missing replica is an empty database."""
        own = self.route or self.name
        if _txid.get() is not None and _page.get() == own:  # Datasette looks at the other databases, too
            return await self._run_at_txid(fn)
        is_of_others = fn is check_connection or _page.get() not in (None, own)
        if not (is_of_others and self._is_missing):
            try:
                return await run(fn)
            except LitevfsError:
                if not is_of_others:
                    raise
                self._note_missing()
        with closing(sqlite3.connect(":memory:")) as nothing:
            nothing.row_factory = sqlite3.Row
            return fn(nothing)

    @property
    def _is_missing(self) -> bool:
        return time.monotonic() < self._missing_until

    def _note_missing(self) -> None:
        logger.warning("the database %s is shown as empty", self.name, exc_info=True)
        self._missing_until = time.monotonic() + RETRY_S

    async def _run_at_txid(self, fn: Callable[[Any], Any]) -> Any:
        txid = _txid.get() or ""

        def at_txid() -> Any:
            try:
                opened = self._open(txid=txid)
            except TXIDNotFoundError as error:
                raise NotFound(str(error)) from error
            with closing(opened) as connection:
                self.ds._prepare_connection(connection, self.name)
                return fn(connection)

        return await asyncio.get_running_loop().run_in_executor(self.ds.executor, at_txid)

    @property
    def size(self) -> int:
        """Bytes of the database; 0 while it cannot be read."""
        if self._is_missing:
            return 0
        try:
            with closing(self._open()) as connection:
                ((pages, page_size),) = connection.execute("SELECT * FROM pragma_page_count, pragma_page_size")
        except LitevfsError:
            self._note_missing()
            return 0
        return int(pages * page_size)

    @property
    def mtime_ns(self) -> None:
        """None: there is no file."""

    async def state(self) -> str:
        """The line under a page: which transaction it shows, and how old that may be."""

        def ask(connection: Any) -> str:
            ((txid, lag),) = connection.execute("SELECT litestream_txid(), litestream_lag()")
            return f"TXID {txid}" + (f", {lag} s behind" if lag > 0 else ", up to date" if lag == 0 else "")

        text: str = await self.execute_fn(ask)
        return f"TXID {_txid.get()}, a fixed state" if _txid.get() else text


# --- hooks ------------------------------------------------------------------------------------------------------------


@hookimpl
def startup(datasette: Any) -> None:
    """Add the configured replicas; none is read. Raises OptionError and ReplicaURLError for what can never work."""
    _hide_locals()
    config = datasette.plugin_config(PLUGIN) or {}
    for name, entry in (config.get("databases") or {}).items():
        options = dict(entry) if isinstance(entry, Mapping) else {"url": entry}
        url = options.pop("url", None)
        if not isinstance(url, str):
            raise OptionError(f"no url for the database {name!r}", hint='write {"url": "s3://bucket/path"}')
        check_names(options, f"option of the database {name!r}:")
        Options.collect({}, {**options, "replica_url": url})
        canonical_url(url)
        datasette.add_database(ReplicaDatabase(datasette, url, options), name=name)
    if datasette.crossdb:  # its connections attach what there is when they are opened, and 1.0 has opened some
        is_mutable = datasette.get_database("_memory").is_mutable
        datasette.remove_database("_memory")
        datasette.add_database(Database(datasette, is_mutable=is_mutable, is_memory=True), name="_memory")


def _hide_locals() -> None:
    """Let Datasette print errors without local variables, as credentials may be among them.

    It prints them by rich, which litevfs brings, and then also fails at a path that it does not know.
    """
    handle_exception.rich = None
    if sys.excepthook.__module__ == "rich.traceback":
        rich.traceback.install(show_locals=False)


@hookimpl
def prepare_jinja2_environment(env: Any) -> None:
    """Put the line under Datasette's own, or under that of the user's templates."""
    env.loader = ChoiceLoader(
        [DictLoader({"_footer.html": _FOOTER}), PrefixLoader({"litevfs-inner": env.loader}, delimiter=":"), env.loader]
    )


@hookimpl
def extra_template_vars(database: str | None, datasette: Any) -> Callable[[], Awaitable[dict[str, str]]]:
    """`litevfs_state`, on the pages of a replica."""

    async def variables() -> dict[str, str]:
        found = datasette.databases.get(database)
        if not isinstance(found, ReplicaDatabase):
            return {}
        try:
            return {"litevfs_state": await found.state()}
        except LitevfsError as error:  # the page shows its own error
            return {"litevfs_state": str(error)}

    return variables


@hookimpl
def asgi_wrapper(datasette: Any) -> Callable[[Any], Any]:
    """Read the path and `?_txid=`."""
    base = str(datasette.setting("base_url")).strip("/")

    def wrap(app: Any) -> Any:
        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            path = (scope.get("path") or "").strip("/").removeprefix(base).strip("/")
            wanted = parse_qs((scope.get("query_string") or b"").decode("latin-1")).get("_txid")
            try:
                if wanted:
                    parse_txid(wanted[-1])
            except LitevfsError as error:
                await send_text(send, 400, str(error))
                return
            page = _page.set(tilde_decode(path.partition("/")[0].partition(".")[0]))
            txid = _txid.set(wanted[-1] if wanted else None)
            try:
                await app(scope, receive, send)
            finally:
                _page.reset(page)
                _txid.reset(txid)

        return with_state

    return wrap

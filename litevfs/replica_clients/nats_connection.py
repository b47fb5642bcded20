"""A NATS connection for threads: nats-py lives in an event loop of its own thread. Knows no LTX file.

Every call has a time limit, and closing ends calls under way. The next call replaces a broken connection, and in the
child of a fork the parent's connection.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from litevfs.concurrency.workers import start_thread
from litevfs.errors import (
    OptionError,
    StorageClosedError,
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.addresses import connection_error
from litevfs.replica_clients.idle import LastUse
from litevfs.replica_clients.nats_messages import first_of

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 10
_CLOSE_TIMEOUT_S = 0.5
WRONG_SEQUENCE = 10071
"""JetStream's error if the newest message of a subject is not the expected one."""
_AUTH_HINT = "user@ in the URL with LITEVFS_NATS_PASSWORD, LITEVFS_NATS_TOKEN, or creds= in the URL, a file"


_REFUSED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)
_BUCKET_HINT = "make the bucket first: `nats object add BUCKET`"
_RIGHTS_HINT = "docs/storages/nats.md lists the least rights of a reader and of a primary"
_MAX_REFUSED = 64  # refusals that are kept


@dataclass(eq=False, slots=True)
class _Call:
    """A call under way. The server says which subject it refuses, in lower case, and not whose message that was."""

    subjects: dict[str, str] = field(default_factory=dict)  # of the messages it waits for, by their lower case
    task: asyncio.Future[Any] | None = None
    refused: str = ""  # what the server refuses

    def note(self, subject: str) -> None:
        self.subjects[subject.lower()] = subject

    def refuse(self, what: str) -> None:
        """End the call."""
        self.refused = what
        if self.task is not None:
            self.task.cancel()


_CURRENT: ContextVar[_Call] = ContextVar("litevfs_nats_call")


@dataclass(frozen=True, slots=True)
class NATSTarget:
    """The server to connect to, and the user."""

    server: str  # host:port
    user: str
    password: str = field(repr=False)
    token: str = field(repr=False)
    credentials_file: str
    is_tls: bool


class NATSConnection:
    """Runs coroutines with the JetStream context. Raises OptionError if `nats-py` is not installed."""

    def __init__(self, target: NATSTarget, timeout_s: float) -> None:
        try:
            import nats
            import nats.errors
            import nats.js.errors
        except ImportError as exc:
            raise OptionError("nats:// needs the package nats-py", hint="pip install litevfs[nats]") from exc
        self._nats: Any = nats
        self._target = target
        self._timeout_s = timeout_s
        self._is_closed = False
        self._forget()

    def _forget(self) -> None:
        """Begin without a connection: at first, and in the child of a fork."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connecting: asyncio.Lock | None = None  # belongs to the loop
        self._client: Any = None  # used in the loop's thread only, as are the following
        self._calls: set[_Call] = set()  # under way
        self._last_use = LastUse()
        self._refused: dict[str, None] = {}  # subjects in lower case, the newest last
        self._closing: asyncio.Task[None] | None = None  # of a connection that may not subscribe
        self.lost: asyncio.Future[None]  # done once the connection of the calls under way has ended

    def check_open(self) -> None:
        """Raise StorageClosedError after `close`."""
        if self._is_closed:
            raise StorageClosedError("the replica client is closed")

    def call(self, what: str, run: Callable[[Any], Awaitable[T]], deadline: float | None = None) -> T:
        """What `run(jetstream)` returns, by `deadline` (`time.monotonic()`, seconds); errors are about `what`."""
        self.check_open()
        remaining = self._timeout_s if deadline is None else deadline - time.monotonic()
        if remaining <= 0:
            raise StorageTimeoutError("no time is left for a call", key=what)
        future = self._submit(run)
        try:
            return future.result(remaining)
        except (concurrent.futures.CancelledError, concurrent.futures.TimeoutError) as exc:
            future.cancel()
            if self._is_closed:
                raise StorageClosedError("the replica client was closed during a call", key=what) from None
            raise StorageTimeoutError(f"no answer from {self._target.server} in time", key=what) from exc
        except StorageError as error:
            error.key = error.key or what
            raise
        except (self._nats.errors.Error, OSError, EOFError) as exc:
            if self._is_closed:
                raise StorageClosedError("the replica client was closed during a call", key=what) from exc
            raise self._error(exc, what) from exc

    def close(self) -> None:
        """End all calls under way and the connection. Idempotent."""
        self._is_closed = True
        if self._pid != os.getpid():
            return
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(lambda: loop.create_task(self._end(loop)))
        thread.join(2 * _CLOSE_TIMEOUT_S)

    def _submit(self, run: Callable[[Any], Awaitable[T]]) -> concurrent.futures.Future[T]:
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            self.check_open()
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._connecting = asyncio.Lock()
                self._thread = start_thread(lambda: _run_loop(loop), "litevfs-nats")
                self._loop = loop
            return asyncio.run_coroutine_threadsafe(self._connected(run), self._loop)

    async def _connected(self, run: Callable[[Any], Awaitable[T]]) -> T:
        assert self._connecting is not None
        async with self._connecting:
            is_old = not self._calls and self._last_use.is_long_ago
            self._last_use.note()
            if is_old and self._client is not None:
                old, self._client = self._client, None
                await self._close_client(old)
            if self._client is None or not self._client.is_connected:
                self.lost = asyncio.get_running_loop().create_future()
                self._client = await self._connect(self.lost)
            client, lost = self._client, self.lost
        own = _Call()
        _CURRENT.set(own)
        call = own.task = asyncio.ensure_future(run(client.jetstream(timeout=self._timeout_s)))
        self._calls.add(own)
        try:
            return await first_of(call, lost)
        except ConnectionResetError:
            if own.refused:
                raise self._refusal(own.refused) from None
            raise
        finally:
            self._calls.discard(own)
            self._last_use.note()
            call.cancel()

    def wait_for_subject(self, subject: str) -> None:
        """Let the current call wait for a message that another call sent: raise StoragePermissionError if the server
        has refused it, and end the call if it does so later.
        """
        if subject.lower() in self._refused:
            raise self._refusal(f'to publish to "{subject}"')
        _CURRENT.get().note(subject)

    def _refusal(self, what: str) -> StoragePermissionError:
        return StoragePermissionError(f"{self._target.server} refuses {what}", hint=_RIGHTS_HINT)

    def _hear(self, client: Any, said: str) -> None:
        """End the calls that a refusal concerns.

        A connection that may not subscribe gets no answer to any call: it is closed, so that the next call hears of it,
        too.
        """
        found = _REFUSED.search(said)
        if found is None:
            return
        kind, subject = found[1].lower(), found[2].lower()
        if kind == "subscription":
            for call in self._calls:
                call.refuse(f'to subscribe to "{subject}"')
            self._closing = asyncio.ensure_future(self._close_client(client))
            return
        self._refused.pop(subject, None)
        self._refused[subject] = None
        while len(self._refused) > _MAX_REFUSED:
            self._refused.pop(next(iter(self._refused)))
        for call in self._calls:
            if subject in call.subjects:
                call.refuse(f'to publish to "{call.subjects[subject]}"')

    async def _connect(self, lost: asyncio.Future[None]) -> Any:
        """A connected client; `lost` is done once its connection has ended."""
        target = self._target
        options: dict[str, Any] = {}
        if target.credentials_file:
            options["user_credentials"] = target.credentials_file
        elif target.token:
            options["token"] = target.token
        elif target.user:
            options |= {"user": target.user, "password": target.password}

        async def hear(error: Exception) -> None:
            """Ignore what is no refusal: the caller of each call gets its own error."""
            if isinstance(error, OSError) and not client.is_connected:
                raise error  # nats-py would go on for two minutes
            self._hear(client, str(error))

        client = self._nats.NATS()
        publish = client.publish

        async def noted_publish(subject: str, *args: Any, **options: Any) -> None:
            if call := _CURRENT.get(None):
                call.note(subject)
            await publish(subject, *args, **options)

        client.publish = noted_publish  # requests are sent by it, too
        try:
            await client.connect(
                f"{'tls' if target.is_tls else 'nats'}://{target.server}",
                connect_timeout=min(_CONNECT_TIMEOUT_S, max(1, round(self._timeout_s))),
                allow_reconnect=False,  # the next call connects again
                error_cb=hear,
                **options,
            )
        except BaseException:
            await self._close_client(client)  # nats-py leaves the socket of a connection that failed open
            raise
        client._reading_task.add_done_callback(lambda _: lost.set_result(None))  # its callbacks may not be called
        return client

    async def _close_client(self, client: Any) -> None:
        try:
            await asyncio.wait_for(client.close(), _CLOSE_TIMEOUT_S)
        except (TimeoutError, OSError, self._nats.errors.Error):
            pass

    async def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
        client, self._client = self._client, None
        for task in others:
            task.cancel()
        if client is not None:
            await self._close_client(client)
        if others:
            await asyncio.wait(others, timeout=_CLOSE_TIMEOUT_S)
        loop.stop()

    def _error(self, exc: Exception, what: str) -> StorageError:
        errors, js_errors, server = self._nats.errors, self._nats.js.errors, self._target.server
        if isinstance(exc, js_errors.NotFoundError):
            hint = _BUCKET_HINT if "stream" in str(exc) else None
            return StorageNotFoundError(f"{server} has no such object or bucket", key=what, hint=hint)
        if isinstance(exc, errors.AuthorizationError) or "Authorization" in str(exc) or "Permissions" in str(exc):
            return StoragePermissionError(f"{server} refuses: {exc}", key=what, hint=_AUTH_HINT)
        if isinstance(exc, errors.NoRespondersError):
            message = f"{server} has no such bucket, or no JetStream at the moment"
            return TransientStorageError(message, key=what, hint=_BUCKET_HINT)
        if isinstance(exc, js_errors.APIError) and (exc.code or 500) < 500:
            return StorageError(f"{server} says: {exc.description}", key=what)
        if isinstance(exc, errors.TimeoutError | TimeoutError):
            return StorageTimeoutError(f"no answer from {server} in time", key=what)
        return connection_error(server, exc, what)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        for _ in range(2):  # transports close their sockets in the next turn
            loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()

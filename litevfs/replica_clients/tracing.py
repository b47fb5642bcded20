"""OpenTelemetry spans of the calls that a replica client gets: one for each, if the process traces. Knows no storage.

A process traces when it has imported `opentelemetry` by the time it opens the client, as each that sets a tracer
provider up has, by hand or by `opentelemetry-instrument`. Any other process does not load OpenTelemetry for it, and its
clients stay as they are.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sized
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from litevfs.errors import LitevfsError
from litevfs.ltx.names import format_txid
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient, SideObject

T = TypeVar("T", bound=ReplicaClient)

_OPERATIONS = (
    "list_files",
    "list_from",
    "read",
    "read_pieces",
    "read_named",
    "write",
    "delete",
    "read_object",
    "put_object",
    "delete_object",
)
_FILE_ARGUMENTS = {
    "list_files": ("level", "min_txid"),
    "list_from": ("level", "min_txid"),
    "read_named": ("level", "min_txid", "max_txid"),
    "write": ("level", "min_txid", "max_txid"),
}
"""The first arguments of the operations that say which files they are about."""

_RUN_CODE_OF_CALLERS = ("write", "read_pieces")
"""A `write` reads a stream that may come from the same client, and `read_pieces` hands pieces over."""

Attributes = dict[str, str | int]


def traced(client: T) -> T:
    """The same client; its calls are spans from now on if this process traces."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return client
    tracer = trace.get_tracer("litevfs")
    own = _OwnCalls()
    for name in _OPERATIONS:
        call = getattr(client, name, None)
        if call is not None:
            with suppress(AttributeError):  # a client of another package may allow no attributes
                setattr(client, name, _spanned(tracer, trace, client.url, name, call, own))
    return client


class _OwnCalls(threading.local):
    """Whether this thread is in a call of the client: what the client calls of itself then is no span of its own."""

    under_way = False


def _spanned(
    tracer: Any, trace: Any, url: str, name: str, call: Callable[..., Any], own: _OwnCalls
) -> Callable[..., Any]:
    @wraps(call)
    def spanned(*args: Any, **options: Any) -> Any:
        if own.under_way:
            return call(*args, **options)
        attributes = {"litevfs.replica": url} | _asked(name, args, options)
        with tracer.start_as_current_span(
            f"litevfs {name}",
            kind=trace.SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            own.under_way = name not in _RUN_CODE_OF_CALLERS
            try:
                answer = call(*args, **options)
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                # The messages of our own errors hold no credentials; those of others are not known.
                text = error.message if isinstance(error, LitevfsError) else type(error).__name__
                span.set_status(trace.StatusCode.ERROR, text)
                raise
            finally:
                own.under_way = False
            if span.is_recording():
                span.set_attributes(_answered(name, answer))
            return answer

    return spanned


def _asked(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Attributes:
    if name in ("read", "read_pieces"):
        file, *rest = args
        offset = rest[0] if rest else options.get("offset", 0)
        return _place(file) | {"litevfs.offset": offset} if isinstance(file, LTXFileInfo) else {}
    if name.endswith("_object"):
        found: Attributes = {"litevfs.object": str(args[0] if args else options.get("name", ""))}
        data = args[1] if len(args) > 1 else options.get("data")
        return found | ({"litevfs.bytes": len(data)} if isinstance(data, Sized) else {})
    asked: Attributes = {}
    for position, field in enumerate(_FILE_ARGUMENTS.get(name, ())):
        value = args[position] if position < len(args) else options.get(field)
        if isinstance(value, int):
            asked[f"litevfs.{field}"] = value if field == "level" else format_txid(value)
    return asked


def _answered(name: str, answer: Any) -> Attributes:
    match answer:
        case int():  # of `read_pieces`
            return {"litevfs.bytes": answer}
        case bytes():
            return {"litevfs.bytes": len(answer)}
        case SideObject():
            return {"litevfs.bytes": len(answer.data)}
        case LTXFileInfo():  # of a write
            return {"litevfs.bytes": answer.size}
        case (LTXFileInfo(), bytes() as data):
            return {"litevfs.bytes": len(data)}
        case (list() as files, bool()):
            return {"litevfs.files": len(files)}
        case list():
            return {"litevfs.files": len(answer)}
    return {"litevfs.found": 0} if name in ("read_named", "read_object") else {}


def _place(file: LTXFileInfo) -> Attributes:
    return {
        "litevfs.level": file.level,
        "litevfs.min_txid": format_txid(file.min_txid),
        "litevfs.max_txid": format_txid(file.max_txid),
    }

"""The messages of a NATS object store as values. Sends nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Described:
    """The message that describes an object, and its sequence number."""

    sequence: int
    fields: dict[str, Any]

    @property
    def is_deleted(self) -> bool:
        """Whether the message says that the object was deleted."""
        return bool(self.fields.get("deleted"))

    @property
    def nuid(self) -> str:
        """The name of the object's content."""
        return str(self.fields.get("nuid", ""))


@dataclass(frozen=True, slots=True)
class Pieces:
    """The messages of an object's content: their sequence numbers, and where each begins and the last ends, bytes."""

    sequences: list[int]
    starts: list[int]


async def first_of(call: asyncio.Future[T], lost: asyncio.Future[None]) -> T:
    """The result of `call`. Raises ConnectionResetError if its connection ends first, by which `lost` is done.

    nats-py lets most calls under way wait for their time limit then, and cancels the others.
    """
    ends: set[asyncio.Future[Any]] = {call, lost}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not call.done() or call.cancelled():
        raise ConnectionResetError("it ended during a call")
    return await call


def fields_of(data: bytes | None) -> dict[str, Any]:
    """The fields of a description; empty if it is none."""
    try:
        fields = json.loads(data or b"")
        if isinstance(fields, dict):
            return fields
    except ValueError:
        pass
    return {}

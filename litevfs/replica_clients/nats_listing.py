"""Listings of a NATS object store: all objects once, later what was stored since. Makes no connection.

The subject of a description is the object's name in base64, one token, so the server cannot select a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litevfs.ltx.names import parse_file_name
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.replica_clients.layouts import GENERATIONS, old_replica
from litevfs.replica_clients.nats_messages import Described, fields_of

_LIST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Listed:
    """What a listing of all objects found: their newest descriptions by name, and when each was stored."""

    created: str  # when the stream was created: another one knows nothing of these
    last: int  # the newest message of the stream then
    objects: dict[str, tuple[Described, int]]


class NATSListing:
    """The files of one replica: those below `prefix` in `bucket`. Used in the loop's thread only.

    `known` may be set to None from any thread: then all objects are listed the next time.
    """

    def __init__(self, bucket: str, prefix: str, timeout_s: float) -> None:
        self._bucket, self._prefix, self._timeout_s = bucket, prefix, timeout_s
        self._stream = f"OBJ_{bucket}"
        self.known: Listed | None = None

    async def list_files(self, js: Any) -> list[LTXFileInfo]:
        """All files. A listing may miss an object that is replaced meanwhile: then this lists once more.

        The store marks deleted objects, so that what was stored since the last listing tells them, too. Objects that
        expire go without a mark.
        """
        info = await js.stream_info(self._stream)
        known = self.known
        if (
            known is None
            or info.config.max_age
            or known.created != str(info.created)
            or info.state.last_seq < known.last
        ):
            known = Listed(str(info.created), 0, {})
        objects, last = dict(known.objects), known.last
        for _ in range(_LIST_TRIES):
            if info.state.last_seq == last:
                break
            for one, modified_ms in await self._descriptions(js, last and last + 1):
                name = str(one.fields.get("name", ""))
                if name not in objects or objects[name][0].sequence < one.sequence:
                    objects[name] = one, modified_ms
            last, info = info.state.last_seq, await js.stream_info(self._stream)
        objects = {name: one for name, one in objects.items() if not one[0].is_deleted}
        self.known = Listed(known.created, last, objects)
        found = [file for one, modified_ms in objects.values() if (file := self.file_of(one, modified_ms))]
        if not found and any(name.startswith(f"{self._prefix}{GENERATIONS}/") for name in objects):
            raise old_replica(f"{self._bucket}/{self._prefix}")
        return sorted(found, key=lambda file: file.place)

    def file_of(self, described: Described, modified_ms: int) -> LTXFileInfo | None:
        """The file that a description is of; None for a deleted one, and for any other object."""
        name = str(described.fields.get("name", ""))
        parts = name.removeprefix(self._prefix).split("/")
        txids = parse_file_name(parts[-1])
        if (
            not name.startswith(self._prefix)
            or described.is_deleted
            or txids is None
            or len(parts) != 3
            or parts[0] != "ltx"
        ):
            return None
        if parts[1] not in map(str, LEVELS):
            return None
        return LTXFileInfo(int(parts[1]), *txids, int(described.fields.get("size", 0)), modified_ms, described.nuid)

    async def _descriptions(self, js: Any, sequence: int) -> list[tuple[Described, int]]:
        """The description of each object, deleted ones too, stored from `sequence` on, and when it was stored."""
        subject = f"$O.{self._bucket}.M.>"
        found: list[tuple[Described, int]] = []
        options = {"stream": self._stream, "ordered_consumer": True, **_newest_from(sequence)}
        subscription = await js.subscribe(subject, **options)
        try:
            info = await subscription.consumer_info()
            left = info.num_pending + info.delivered.consumer_seq
            while left:
                message = await subscription.next_msg(timeout=self._timeout_s)
                described = Described(message.metadata.sequence.stream, fields_of(message.data))
                found.append((described, int(message.metadata.timestamp.timestamp() * 1000)))
                left = message.metadata.num_pending
        finally:
            await subscription.unsubscribe()
        return found


def _newest_from(sequence: int) -> dict[str, Any]:
    """Options of a consumer that begins with the newest message of each subject; from a `sequence` other than 0 on with
    every message there is.
    """
    from nats.js.api import ConsumerConfig, DeliverPolicy

    if not sequence:
        return {"deliver_policy": DeliverPolicy.LAST_PER_SUBJECT}
    config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=sequence)
    return {"config": config}

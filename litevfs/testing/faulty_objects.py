"""A faulty client whose storage also keeps objects beside the levels, such as the lease of a primary."""

from __future__ import annotations

from litevfs.replica_clients.base import ReplicaClient, SideObject, SideObjects
from litevfs.testing.faults import Faults
from litevfs.testing.faulty import FaultyReplicaClient


class FaultyObjectsClient(FaultyReplicaClient):
    """A `FaultyReplicaClient` with the `SideObjects` of the client that it passes calls on to, free of faults."""

    def __init__(self, inner: ReplicaClient, faults: Faults) -> None:
        """Raises TypeError for a client that keeps no objects."""
        if not isinstance(inner, SideObjects):
            raise TypeError(f"{inner!r} keeps no objects beside the levels")
        super().__init__(inner, faults)
        self._objects: SideObjects = inner

    @property
    def keeps_conditions(self) -> bool:
        """See `SideObjects.keeps_conditions`."""
        return self._objects.keeps_conditions

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`."""
        return self._objects.read_object(name)

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`."""
        return self._objects.put_object(name, data, if_match=if_match, if_absent=if_absent)

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`."""
        self._objects.delete_object(name)

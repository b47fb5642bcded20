"""Reads of a whole range, for clients whose answers come in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod

from litevfs.replica_clients.base import LTXFileInfo, Take


class ReadsByPieces(ABC):
    """What a client whose `read_pieces` also reads to the end of a file needs no code of its own for."""

    @abstractmethod
    def read_pieces(
        self, file: LTXFileInfo, offset: int, size: int | None, take: Take, *, timeout_s: float | None = None
    ) -> int:
        """See `ReadsPieces.read_pieces`. One request; none for zero bytes. All that follows without a size."""

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`. One request; none for zero bytes."""
        pieces: list[bytes] = []
        self.read_pieces(file, offset, size, pieces.append, timeout_s=timeout_s)
        return b"".join(pieces)

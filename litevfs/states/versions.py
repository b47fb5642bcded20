"""TXIDs of one history as the 32-bit codes by which a page map names them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Versions:
    """TXIDs of one history as 32-bit codes, from 1 on; 0 is no version. Equal TXIDs have equal codes.

    A code is the distance from the first TXID seen, in order. TXIDs that are too far from it (a history may jump to the
    end of the 64-bit range) get codes from a list, one by one.
    """

    __slots__ = ("_base", "_far", "_far_codes")

    FIRST_FAR = 1 << 31

    def __init__(self, base: int | None = None, far: Sequence[int] = ()) -> None:
        """With the `content` of others, the same codes."""
        self._base = base
        self._far = list(far)
        self._far_codes = {txid: self.FIRST_FAR + i for i, txid in enumerate(far)}

    @property
    def content(self) -> tuple[int | None, tuple[int, ...]]:
        """What the codes follow from: the first TXID seen, and those too far from it."""
        return self._base, tuple(self._far)

    def code(self, txid: int) -> int:
        """The code of a TXID. Only the builder of snapshots calls this, one thread at a time."""
        if self._base is None:
            self._base = txid
        code = txid - self._base + 1
        if 0 < code < self.FIRST_FAR:
            return code
        if txid not in self._far_codes:
            self._far_codes[txid] = self.FIRST_FAR + len(self._far)
            self._far.append(txid)
        return self._far_codes[txid]

    def are_at_most(self, codes: NDArray[np.uint32], txid: int) -> NDArray[np.bool_]:
        """Which codes stand for a TXID up to `txid`; 0 does not."""
        limit = min(max(txid - (self._base or 0) + 1, 0), self.FIRST_FAR - 1)
        result = (codes > 0) & (codes <= limit)
        for code in set(codes[codes >= self.FIRST_FAR].tolist()):
            result[codes == code] = self._far[code - self.FIRST_FAR] <= txid
        return result

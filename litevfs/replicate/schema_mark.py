"""Whether readers can tell from the schema version alone that the schema of a database is another one.

SQLite reads the schema again when its version changes, and so do readers of a replica. That suffices as long as all
changes are SQLite's. A file that was replaced, or overwritten by a copy, may have another schema with the same version,
or with one that a reader has seen before: such a database has to come whole, which is what makes readers read its
schema (`whole_txid` of `states/snapshot.py`).
"""

from __future__ import annotations

from dataclasses import replace

from litevfs.replicate.database import ReadTransaction
from litevfs.replicate.state import State

_OFFSET = 40
"""Bytes; where page 1 has the schema version, 4 bytes."""


def version_of(page_1: bytes) -> int:
    """The schema version in page 1, as `PRAGMA schema_version` has it."""
    return int.from_bytes(page_1[_OFFSET : _OFFSET + 4], "big", signed=True)


def with_schema(state: State, transaction: ReadTransaction) -> State:
    """The state, which is that of `transaction`, with its schema; the same object when that is known."""
    version = transaction.schema_version
    if state.schema_version == version == state.schema_read_at:
        return state
    return read_schema(state, transaction)


def read_schema(state: State, transaction: ReadTransaction) -> State:
    """The state with the schema of `transaction`."""
    version = transaction.schema_version
    return replace(state, schema_version=version, schema_read_at=version, schema_sum=transaction.schema_sum())


def may_be_mistaken(after: State, before: State) -> bool:
    """Whether a reader of `before`, or of a state before that, may take the schema of `after` for one that it knows."""
    if before.schema_version is None or after.schema_version is None:
        return True
    if after.schema_version != before.schema_version:
        return after.schema_version < before.schema_version
    is_known = before.schema_read_at == before.schema_version and before.schema_sum is not None
    return not is_known or after.schema_sum != before.schema_sum

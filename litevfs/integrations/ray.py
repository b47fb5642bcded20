"""A table of a replica as a Ray dataset: one read task for each piece, all of one state.

dataset = litevfs.integrations.ray.read_table("s3://bucket/app", "orders", parallelism=8)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from litevfs.errors import OptionError
from litevfs.integrations.partitions import Partition, partitions
from litevfs.integrations.types import typed


def read_table(
    replica_url: str | os.PathLike[str],
    table: str,
    *,
    parallelism: int = 8,
    txid: int | str | None = None,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    parameters: Sequence[Any] = (),
    as_text: Sequence[str] = (),
    hold: bool = False,
    **options: Any,
) -> Any:
    """A `ray.data.Dataset` of a table, read when it is consumed.

    Types are as in `litevfs.integrations.dask.read_table`. Raises what `litevfs.partitions` raises, and OptionError
    without Ray.
    """
    try:
        import ray.data
    except ImportError as error:
        raise OptionError("this needs Ray's datasets", hint="pip install 'litevfs[engines]'") from error
    pieces = partitions(
        replica_url,
        table,
        parallelism,
        txid=txid,
        columns=columns,
        where=where,
        parameters=parameters,
        as_text=as_text,
        hold=hold,
        **options,
    )
    pieces, schema = typed(pieces)
    return ray.data.read_datasource(_datasource(pieces, schema), override_num_blocks=len(pieces))


def _datasource(pieces: Sequence[Partition], schema: Any) -> Any:
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class LitevfsDatasource(Datasource):
        """Gives Ray one read task for each piece."""

        def get_name(self) -> str:
            """The name that Ray shows."""
            return "litevfs"

        def estimate_inmemory_data_size(self) -> int | None:
            """Unknown: no row was read."""
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            """One task for each piece, whatever `parallelism` says."""
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda piece=piece: [piece.read()], metadata, schema=schema) for piece in pieces]

    return LitevfsDatasource()

"""A table of a replica as a Dask DataFrame: one partition for each piece, all of one state.

frame = litevfs.integrations.dask.read_table("s3://bucket/app", "orders", npartitions=8)
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
    npartitions: int = 8,
    txid: int | str | None = None,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    parameters: Sequence[Any] = (),
    as_text: Sequence[str] = (),
    hold: bool = False,
    **options: Any,
) -> Any:
    """A `dask.dataframe.DataFrame` of a table, which any worker reads when it is computed.

    The types (pandas' Arrow types) come from the declared ones, without reading a row; a column whose declared type
    does not say what it holds is text, and so are those of `as_text`. Raises what `litevfs.partitions` raises, and
    OptionError without Dask.
    """
    try:
        import dask.dataframe as dd
    except ImportError as error:
        raise OptionError("this needs Dask's data frames", hint="pip install 'litevfs[engines]'") from error
    pieces = partitions(
        replica_url,
        table,
        npartitions,
        txid=txid,
        columns=columns,
        where=where,
        parameters=parameters,
        as_text=as_text,
        hold=hold,
        **options,
    )
    pieces, schema = typed(pieces)
    return dd.from_map(_read, pieces, meta=_to_pandas(schema.empty_table()), label=f"litevfs-{table}")


def _read(piece: Partition) -> Any:
    return _to_pandas(piece.read())


def _to_pandas(table: Any) -> Any:
    import pandas

    return table.to_pandas(types_mapper=pandas.ArrowDtype)

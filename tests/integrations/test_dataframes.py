"""pandas, polars and sqlite-utils read from `litevfs.dbapi` what they read from `sqlite3`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

import litevfs.dbapi
from tests.integrations.conftest import Shop

HOW = "needs the extra `integrations` (pip install 'litevfs[integrations]')"


@pytest.fixture
def con(shop: Shop) -> Iterator[litevfs.dbapi.Connection]:
    with closing(litevfs.dbapi.connect(shop.url)) as connection:
        yield connection


QUERIES = [
    "SELECT * FROM sale",
    "SELECT * FROM sale WHERE 0",
    "SELECT name, sum(price) AS s FROM spent, sale GROUP BY 1",
]


@pytest.mark.filterwarnings("ignore:pandas only supports SQLAlchemy")
@pytest.mark.parametrize("sql", QUERIES)
def test_pandas_reads_the_frame_that_it_reads_from_sqlite3(con, local, sql: str):
    pandas = pytest.importorskip("pandas", reason=HOW)
    options = {"parse_dates": ["placed"], "index_col": None} if sql.startswith("SELECT *") else {}
    pandas.testing.assert_frame_equal(pandas.read_sql(sql, con, **options), pandas.read_sql(sql, local, **options))
    ours = list(pandas.read_sql(sql, con, chunksize=128))
    theirs = list(pandas.read_sql(sql, local, chunksize=128))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        pandas.testing.assert_frame_equal(one, other)


@pytest.mark.filterwarnings("ignore:pandas only supports SQLAlchemy")
def test_pandas_gives_parameters_both_ways(con):
    pandas = pytest.importorskip("pandas", reason=HOW)
    for sql, parameters in (("SELECT ? AS a", (5,)), ("SELECT :v AS a", {"v": 5})):
        assert pandas.read_sql(sql, con, params=parameters)["a"].tolist() == [5]


@pytest.mark.parametrize("sql", QUERIES)
def test_polars_reads_the_frame_that_it_reads_from_sqlite3(con, local, sql: str):
    polars = pytest.importorskip("polars", reason=HOW)
    from polars.testing import assert_frame_equal

    assert_frame_equal(polars.read_database(sql, con), polars.read_database(sql, local))
    ours = polars.read_database(sql, con, iter_batches=True, batch_size=128)
    theirs = polars.read_database(sql, local, iter_batches=True, batch_size=128)
    for one, other in zip(ours, theirs, strict=True):
        assert_frame_equal(one, other)


def test_sqlite_utils_looks_around(con, local):
    sqlite_utils = pytest.importorskip("sqlite_utils", reason=HOW)
    ours, theirs = sqlite_utils.Database(con), sqlite_utils.Database(local)
    assert ours.schema == theirs.schema
    assert ours.table_names() == theirs.table_names()
    assert ours.view_names() == theirs.view_names()
    assert list(ours["customer"].rows_where("city = ?", ["Bern"])) == [{"id": 1, "name": "Ada", "city": "Bern"}]
    assert ours["customer"].get(3) == theirs["customer"].get(3)
    assert ours["sale"].columns_dict == theirs["sale"].columns_dict
    assert ours["sale"].foreign_keys == theirs["sale"].foreign_keys
    assert ours["sale"].indexes == theirs["sale"].indexes
    assert list(ours.query("SELECT count(*) AS n FROM sale")) == [{"n": 500}]
    with pytest.raises(litevfs.dbapi.OperationalError, match="read-only"):
        ours["customer"].insert({"name": "Mallory"})

"""The dialect against SQLAlchemy's own for SQLite on the same database, and the tools that stand on SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

import litevfs
import litevfs.dbapi
from tests.integrations.conftest import Shop

HOW = "needs the extra `integrations` (pip install 'litevfs[integrations]')"
sa = pytest.importorskip("sqlalchemy", reason=HOW)

from litevfs.integrations.sqlalchemy import replica_url, split_query  # noqa: E402 - after the skip

IS_1_4 = sa.__version__.startswith("1.4.")
needs_2 = pytest.mark.skipif(IS_1_4, reason="pandas and Dask take SQLAlchemy 2 only")


def create_engine(url: str, **arguments: Any) -> Any:
    """An engine with SQLAlchemy 2's way, which 1.4 has by a flag."""
    return sa.create_engine(url, **({"future": True} if IS_1_4 else {}), **arguments)


@pytest.fixture
def engine(shop: Shop) -> Iterator[Any]:
    engine = create_engine(f"litevfs:///{shop.folder}")
    yield engine
    engine.dispose()


@pytest.fixture
def local_engine(shop: Shop) -> Iterator[Any]:
    engine = create_engine(f"sqlite:///{shop.local}")
    yield engine
    engine.dispose()


def test_reflection_finds_what_it_finds_in_the_local_file(engine, local_engine):
    ours, theirs = sa.inspect(engine), sa.inspect(local_engine)
    assert ours.get_table_names() == theirs.get_table_names() == ["customer", "sale"]
    assert ours.get_view_names() == theirs.get_view_names()
    assert ours.get_view_definition("spent") == theirs.get_view_definition("spent")
    for table in ("customer", "sale"):
        for ask in ("get_pk_constraint", "get_foreign_keys", "get_indexes", "get_unique_constraints"):
            assert getattr(ours, ask)(table) == getattr(theirs, ask)(table)
        assert repr(ours.get_columns(table)) == repr(theirs.get_columns(table))
    assert ours.has_table("sale")
    assert not ours.has_table("missing")


def test_reflection_sees_a_table_that_has_just_come(live_shop: Shop):
    engine = create_engine(f"litevfs:///{live_shop.folder}")
    with engine.connect() as connection:
        assert not sa.inspect(connection).has_table("made")
        connection.rollback()
        live_shop.primary.commit("CREATE TABLE made(a UNIQUE, b REFERENCES customer(id))")
        txid = live_shop.primary.commit("CREATE INDEX made_b ON made(b)")
        connection.connection.dbapi_connection.wait_for(txid)
        assert [index["name"] for index in sa.inspect(connection).get_indexes("made")] == ["made_b"]
    engine.dispose()


def test_a_reflected_table_has_the_same_rows_and_types(engine, local_engine):
    for name in ("customer", "sale", "spent"):
        rows = []
        for each in (engine, local_engine):
            table = sa.Table(name, sa.MetaData(), autoload_with=each)
            with each.connect() as connection:
                rows.append(connection.execute(sa.select(table)).all())
        assert rows[0] == rows[1]


def test_the_orm_reads_with_its_relations(engine, shop: Shop):
    from sqlalchemy.ext.automap import automap_base
    from sqlalchemy.orm import Session

    base = automap_base()
    base.prepare(autoload_with=engine)
    with Session(engine) as session:
        ada = session.scalars(sa.select(base.classes.customer).where(base.classes.customer.name == "Ada")).one()
        ((count,),) = shop.primary.rows("SELECT count(*) FROM sale WHERE customer_id = 1")
        assert len(ada.sale_collection) == count
        session.add(base.classes.customer(name="Mallory"))
        with pytest.raises(sa.exc.OperationalError, match="read-only: write to the primary database"):
            session.commit()


def test_regexp_and_streams_work(engine):
    customer = sa.table("customer", sa.column("name"))
    with engine.connect() as connection:
        names = connection.scalars(sa.select(customer.c.name).where(customer.c.name.regexp_match("^[AB]"))).all()
        assert names == ["Ada", "Björn"]
        result = connection.execution_options(yield_per=100).execute(sa.text("SELECT id FROM sale"))
        assert [len(part) for part in result.partitions(100)] == [100] * 5


# --- transactions -----------------------------------------------------------------------------------------------------


def test_a_transaction_sees_one_txid_and_the_next_the_newest(live_shop: Shop):
    engine = create_engine(f"litevfs:///{live_shop.folder}")
    count = sa.text("SELECT count(*) FROM customer")

    def grow() -> None:
        txid = live_shop.primary.commit("INSERT INTO customer(name) VALUES ('n' || hex(randomblob(8)))")
        with closing(litevfs.dbapi.connect(live_shop.url)) as connection:
            connection.wait_for(txid)  # the replica is shared

    with engine.connect() as connection:
        for n in range(3, 6):
            assert connection.scalar(count) == n
            grow()
            assert connection.scalar(count) == n
            connection.rollback()
        assert connection.scalar(count) == 6
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.get_isolation_level() == "AUTOCOMMIT"
        assert connection.scalar(count) == 6
        grow()
        assert connection.scalar(count) == 7
    with engine.connect() as connection:
        assert connection.get_isolation_level() == "SERIALIZABLE"
        assert connection.scalar(count) == 7
        grow()
        assert connection.scalar(count) == 7
    engine.dispose()


def test_read_your_writes_and_arrow_take_connections_of_the_engine(live_shop: Shop):
    from sqlalchemy.orm import Session

    engine = create_engine(f"litevfs:///{live_shop.folder}")
    txid = live_shop.primary.commit("INSERT INTO customer(name) VALUES ('new')")
    count = sa.text("SELECT count(*) AS n FROM customer")
    with engine.connect() as connection:
        assert litevfs.wait_for(connection, txid) >= txid
        connection.rollback()
        assert connection.scalar(count) == 4
        if pytest.importorskip("pyarrow", reason="needs pyarrow (pip install 'litevfs[arrow]')"):
            rows = litevfs.arrow(connection, str(count)).reader().read_all().to_pylist()
            assert rows == [{"n": 4}]
    with Session(engine, future=True) as session:
        assert litevfs.wait_for(session, txid) >= txid
        assert session.scalar(count) == 4
    raw = engine.raw_connection()
    assert litevfs.wait_for(raw, txid) >= txid
    raw.close()
    with pytest.raises(sa.exc.ResourceClosedError):
        litevfs.wait_for(connection, txid)
    with pytest.raises(litevfs.OptionError, match="no connection: str; hint: pass an open connection"):
        litevfs.wait_for(live_shop.url, txid)
    engine.dispose()


def test_the_pool_keeps_connections_that_hold_no_state(engine):
    import apsw

    with engine.connect() as connection:
        first = connection.connection.dbapi_connection
        connection.execute(sa.text("SELECT * FROM sale")).fetchone()
    assert first.apsw_connection.txn_state() == apsw.SQLITE_TXN_NONE
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is first


def test_temporary_tables_are_undone_by_a_rollback(engine):
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE TEMP TABLE kept(a)"))
        connection.commit()
        connection.execute(sa.text("INSERT INTO kept VALUES (1)"))
        connection.rollback()
        assert connection.scalar(sa.text("SELECT count(*) FROM kept")) == 0


# --- the URL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "replica", "options"),
    [
        ("litevfs:////srv/app", "/srv/app", {}),
        ("litevfs:///srv/app", "srv/app", {}),
        ("litevfs:////srv/a%20b%231", "/srv/a b#1", {}),
        ("litevfs:///file:///srv/a%20b?txid=c", "file:///srv/a%20b", {"txid": "c"}),
        ("litevfs:///s3://bucket/app?poll_interval=250ms", "s3://bucket/app", {"poll_interval": "250ms"}),
        (
            "litevfs:///s3://bucket/a%2520b%23?endpoint=http://127.0.0.1:9000/x&cache_size=5MB&region=eu",
            "s3://bucket/a%2520b%23?endpoint=http%3A%2F%2F127.0.0.1%3A9000%2Fx&region=eu",
            {"cache_size": "5MB"},
        ),
        ("sqlite+litevfs:///memory://name", "memory://name", {}),
    ],
)
def test_options_are_taken_out_of_the_url_and_the_rest_is_the_replicas(url: str, replica: str, options: dict[str, str]):
    parsed = sa.engine.make_url(url)
    found, parameters = split_query(parsed.query)
    assert (replica_url(parsed.database, parameters), found) == (replica, options)
    (argument,), keywords = parsed.get_dialect()().create_connect_args(parsed)
    assert argument == replica
    assert keywords == {"check_same_thread": False, "autocommit": False, **options}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("litevfs:////srv/app?pol_interval=1s", "did you mean poll_interval"),
        ("litevfs:////srv/app?color=red", "unknown option 'color'; hint: known: "),
        ("litevfs:///s3://bucket/app?pol_interval=1s", "did you mean poll_interval"),
        ("litevfs:///s3://bucket/app?poll_interval=1s&poll_interval=2s", "given 2 times"),
        ("litevfs://bucket/app", "three slashes: write litevfs:///s3://"),
        ("litevfs://", "no replica URL: write litevfs:///s3://"),
    ],
)
def test_a_wrong_url_says_what_to_write(url: str, message: str):
    with pytest.raises((sa.exc.ArgumentError, litevfs.OptionError), match=message):
        create_engine(url).connect()


def test_a_folder_with_a_slash_too_few_is_told_to_have_four(shop: Shop):
    with pytest.raises(sa.exc.ArgumentError, match=r"an absolute path has four slashes: write litevfs:///s3://"):
        create_engine(f"litevfs://{shop.folder}").connect()


@pytest.mark.parametrize(
    ("rest", "message"),
    [("?poll_interval=soon", "not a duration"), ("/missing?open_timeout=50ms", "no such replica folder")],
)
def test_what_the_replica_says_is_what_the_engine_says(shop: Shop, rest: str, message: str):
    engine = create_engine(f"litevfs:///{shop.folder}{rest}")
    with pytest.raises(sa.exc.DBAPIError, match=message) as caught:
        engine.connect()
    assert isinstance(caught.value.orig, litevfs.LitevfsError)


def test_a_state_is_fixed_in_the_url(live_shop: Shop):
    live_shop.primary.commit("DELETE FROM sale")
    engine = create_engine(f"litevfs:///{live_shop.url}?txid=1")
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM sale")) == 500
    engine.dispose()


# --- tools that stand on it -------------------------------------------------------------------------------------------


@needs_2
def test_pandas_reads_tables_and_queries(engine, local_engine):
    pandas = pytest.importorskip("pandas", reason=HOW)
    for read in (
        lambda e: pandas.read_sql_table("sale", e),
        lambda e: pandas.read_sql("SELECT * FROM sale WHERE 0", e),
        lambda e: pandas.concat(pandas.read_sql(sa.text("SELECT * FROM sale"), e, chunksize=100)),
    ):
        pandas.testing.assert_frame_equal(read(engine), read(local_engine))


@needs_2
def test_dask_reads_a_table_in_partitions(shop: Shop):
    pytest.importorskip("dask.dataframe", reason=HOW)
    import dask
    import dask.dataframe

    with dask.config.set(scheduler="synchronous"):
        frame = dask.dataframe.read_sql_table("sale", f"litevfs:///{shop.folder}", index_col="id", npartitions=4)
        assert (frame.npartitions, len(frame), frame["price"].sum().compute()) == (4, 500, 156562.5)


@pytest.mark.filterwarnings("ignore")
def test_ibis_reads_a_connection(shop: Shop):
    ibis = pytest.importorskip("ibis", reason=HOW)
    pytest.importorskip("pyarrow_hotfix", reason=HOW)
    with closing(litevfs.dbapi.connect(shop.url, isolation_level=None)) as connection:
        backend = ibis.sqlite.from_connection(connection)
        assert backend.table("sale").price.sum().execute() == 156562.5


@pytest.mark.filterwarnings("ignore")
def test_jupysql_runs_a_cell(shop: Shop, tmp_path, monkeypatch: pytest.MonkeyPatch):
    try:
        pytest.importorskip("sql.magic", reason=HOW)
    except SystemExit:  # of PySpark, which jupysql imports where it is installed
        pytest.skip("PySpark is here without grpcio: pip install 'pyspark[connect]'")
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_line_magic("load_ext", "sql")
    shell.run_line_magic("config", "SqlMagic.feedback = 0")
    shell.run_line_magic("sql", f"litevfs:///{shop.folder}")
    result = shell.run_line_magic("sql", "SELECT count(*) FROM sale")
    assert result.DataFrame().iloc[0, 0] == 500
    shell.run_line_magic("sql", f"--close litevfs:///{shop.folder}")
    InteractiveShell.clear_instance()

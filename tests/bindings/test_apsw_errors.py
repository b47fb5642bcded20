"""Errors as the users of an APSW connection catch them: ours, APSW's and the standard kin at once."""

from __future__ import annotations

import copy
import pickle

import apsw
import pytest

import litevfs
from litevfs import errors
from litevfs.bindings.apsw_errors import apsw_errors, make_apsw_error
from litevfs.errors import LitevfsError
from tests.scripted import Script
from tests.support import connected, rows

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LitevfsError)]
OF_QUERIES = [kind for kind in EVERY if kind.extendedresult is not None]


def raised(error: LitevfsError) -> LitevfsError:
    with pytest.raises(LitevfsError) as caught, apsw_errors():
        raise error
    return caught.value


@pytest.mark.parametrize("kind", OF_QUERIES, ids=lambda kind: kind.__name__)
def test_every_error_of_a_query_becomes_an_apsw_error_and_stays_the_same_object(kind):
    error = kind("what happened", level=2, min_txid=10, key="x.ltx", hint="do this")
    text, attributes = str(error), dict(vars(error))
    caught = raised(error)
    assert caught is error
    assert isinstance(caught, kind)
    assert isinstance(caught, apsw.Error)
    assert isinstance(caught, type(apsw.exception_for(kind.extendedresult)))
    assert (caught.result, caught.extendedresult) == (kind.extendedresult & 0xFF, kind.extendedresult)
    assert (str(caught), vars(caught)) == (text, attributes)
    assert (type(caught).__name__, type(caught).__module__) == (kind.__name__, kind.__module__)
    make_apsw_error(caught)
    assert caught.__class__ is raised(kind("another")).__class__


@pytest.mark.parametrize("kind", OF_QUERIES, ids=lambda kind: kind.__name__)
def test_a_pickled_error_is_the_same_error_again(kind):
    caught = raised(kind("what happened", level=2, min_txid=10, key="x.ltx", hint="do this"))
    for again in (pickle.loads(pickle.dumps(caught)), copy.copy(caught)):
        assert type(again) is type(caught)
        assert (str(again), vars(again)) == (str(caught), vars(caught))
    plain = kind("what happened", hint="do this")
    again = pickle.loads(pickle.dumps(plain))
    assert type(again) is kind
    assert str(again) == str(plain)


def test_what_no_query_meets_stays_as_it_is():
    assert type(raised(errors.RestoreError("x"))) is errors.RestoreError


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (errors.StorageNotFoundError, (apsw.IOError, FileNotFoundError)),
        (errors.StoragePermissionError, (apsw.IOError, PermissionError)),
        (errors.StorageTimeoutError, (apsw.IOError, TimeoutError)),
        (errors.TXIDGapError, (apsw.IOError,)),
        (errors.ReplicaEmptyError, (apsw.IOError, apsw.CantOpenError)),
        (errors.LTXChecksumError, (apsw.CorruptError, ValueError)),
        (errors.OptionError, (apsw.CantOpenError, ValueError)),
        (errors.ReplicaReadOnlyError, (apsw.ReadOnlyError,)),
    ],
)
def test_parents(kind, parents):
    error = raised(kind("x"))
    assert all(isinstance(error, parent) for parent in parents)


def test_an_error_in_a_query_is_ours_and_apsws_and_keeps_cause_and_traceback(small):
    primary, script = small
    primary.commit("INSERT INTO t VALUES(2)")
    with connected(script.url, poll_interval=0, cache_size=0) as con:
        con.execute("PRAGMA cache_size=0")

        def fail(*_: object) -> bytes:
            raise litevfs.StoragePermissionError("refused", key="k") from ValueError("the cause")

        script.on_read = fail
        with pytest.raises(litevfs.StoragePermissionError, match="refused") as caught:
            rows(con, "SELECT * FROM t")
        assert isinstance(caught.value, apsw.IOError)
        assert isinstance(caught.value, PermissionError)
        assert isinstance(caught.value.__cause__, ValueError)
        assert any(entry.name == "fail" for entry in caught.traceback)
        script.on_read = None
        assert rows(con, "SELECT * FROM t") == [(1,), (2,)]


@pytest.mark.parametrize("call", [litevfs.connect, lambda url: litevfs.subscribe(url, print)])
def test_errors_before_there_is_a_connection_are_apsws_too(call):
    with pytest.raises(litevfs.ReplicaURLError) as caught:
        call("s5://nowhere")
    assert isinstance(caught.value, apsw.CantOpenError)


def test_a_pragma_that_makes_no_sense_is_apsws_too():
    with Script() as script, pytest.raises(litevfs.ReplicaEmptyError) as caught:
        litevfs.connect(script.url, open_timeout="10ms")
    assert isinstance(caught.value, apsw.Error)

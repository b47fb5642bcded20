"""The exception tree as its users catch it."""

from __future__ import annotations

import apsw
import pytest

import litevfs
from litevfs import errors
from litevfs.errors import LitevfsError

EVERY = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, LitevfsError)]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_shows_where_and_what_to_do(kind):
    error = kind("what happened", level=2, min_txid=10, max_txid=255, key="path/x.ltx", hint="do this")
    assert str(error) == ("what happened (level 2, TXIDs 000000000000000a-00000000000000ff, path/x.ltx); hint: do this")
    assert (error.level, error.min_txid, error.max_txid, error.key, error.hint) == (2, 10, 255, "path/x.ltx", "do this")
    assert str(kind("just this")) == "just this"


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_that_a_query_can_meet_carries_sqlites_code(kind):
    if kind.extendedresult is None:
        assert kind is LitevfsError or issubclass(
            kind, errors.ReplicatorError | errors.RestoreError | errors.FollowError | errors.ResultTypeError
        )
    else:
        codes = {apsw.SQLITE_CANTOPEN, apsw.SQLITE_CORRUPT, apsw.SQLITE_IOERR, apsw.SQLITE_READONLY}
        assert kind.extendedresult & 0xFF in codes


@pytest.mark.parametrize(
    ("kind", "kin"),
    [
        (errors.OptionError, ValueError),
        (errors.LTXFormatError, ValueError),
        (errors.StorageError, OSError),
        (errors.StorageNotFoundError, FileNotFoundError),
        (errors.StoragePermissionError, PermissionError),
        (errors.StorageTimeoutError, TimeoutError),
        (errors.TransientStorageError, ConnectionError),
        (errors.TXIDNotFoundError, LookupError),
        (errors.StaleReplicaError, TimeoutError),
    ],
)
def test_errors_are_caught_as_their_standard_kin(kind, kin):
    with pytest.raises(kin):
        raise kind("x")


def test_whether_to_try_again_is_a_class():
    assert issubclass(errors.StorageTimeoutError, errors.TransientStorageError)
    for final in (errors.StorageNotFoundError, errors.StoragePermissionError, errors.StorageClosedError):
        assert not issubclass(final, errors.TransientStorageError)


def test_every_error_is_a_public_name():
    assert {kind.__name__ for kind in EVERY} <= set(litevfs.__all__)

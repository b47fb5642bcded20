"""The conformance suite's part about small objects beside the levels (`SideObjects`); skipped for clients without."""

# ruff: noqa: D102 - a test's name says its claim

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from litevfs.errors import ConditionsUnsupportedError, StorageClosedError, StoragePreconditionError
from litevfs.replica_clients.base import SideObject, SideObjects
from litevfs.testing.conformance_base import ReplicaUnderTest

_NAME = "lock.json"


class ObjectsConformance:
    """Tests of the promises of `SideObjects`. See `client_conformance` for how to run it."""

    @pytest.fixture
    def objects(self, replica: ReplicaUnderTest) -> Iterator[SideObjects]:
        """A client of the replica that keeps small objects."""
        client = replica.new_client()
        try:
            if not isinstance(client, SideObjects):
                pytest.skip("this client keeps no objects beside the levels")
            yield client
        finally:
            client.close()

    @pytest.fixture
    def conditions(self, objects: SideObjects) -> SideObjects:
        """The same client, if its storage knows conditions; else the test is skipped."""
        try:
            objects.put_object("probe.json", b"{}")
            objects.put_object("probe.json", b"{}", if_absent=True)
        except StoragePreconditionError:
            return objects
        except ConditionsUnsupportedError:
            pass
        assert not objects.keeps_conditions, "the client promises conditions, and breaks that"
        pytest.skip("this storage knows no conditional writes")

    def test_an_object_is_read_as_it_was_put(self, objects: SideObjects) -> None:
        assert objects.read_object(_NAME) is None
        etag = objects.put_object(_NAME, b'{"a": 1}')
        assert objects.read_object(_NAME) == SideObject(b'{"a": 1}', etag)
        newer = objects.put_object(_NAME, b'{"a": 2}')
        assert newer != etag
        assert objects.read_object(_NAME) == SideObject(b'{"a": 2}', newer)

    def test_an_object_is_deleted_and_deleted_again(self, objects: SideObjects) -> None:
        objects.put_object(_NAME, b"{}")
        for _ in range(2):
            objects.delete_object(_NAME)
            assert objects.read_object(_NAME) is None

    def test_an_object_is_no_file_of_any_level(self, replica: ReplicaUnderTest, objects: SideObjects) -> None:
        objects.put_object(_NAME, b"{}")
        client = replica.new_client()
        assert all(client.list_files(level) == [] for level in range(10))
        client.close()

    def test_an_object_that_must_be_new_replaces_none(self, conditions: SideObjects) -> None:
        etag = conditions.put_object(_NAME, b"first", if_absent=True)
        with pytest.raises(StoragePreconditionError):
            conditions.put_object(_NAME, b"second", if_absent=True)
        assert conditions.read_object(_NAME) == SideObject(b"first", etag)

    def test_an_object_is_replaced_only_while_it_is_as_expected(self, conditions: SideObjects) -> None:
        first = conditions.put_object(_NAME, b"first")
        second = conditions.put_object(_NAME, b"second", if_match=first)
        with pytest.raises(StoragePreconditionError):
            conditions.put_object(_NAME, b"third", if_match=first)
        with pytest.raises(StoragePreconditionError):
            conditions.put_object(_NAME, b"third", if_match="0123456789abcdef-of-another-storage")
        assert conditions.read_object(_NAME) == SideObject(b"second", second)
        conditions.delete_object(_NAME)
        with pytest.raises(StoragePreconditionError):
            conditions.put_object(_NAME, b"fourth", if_match=second)
        assert conditions.read_object(_NAME) is None

    @pytest.mark.parametrize("is_new", [True, False])
    def test_of_several_writers_with_one_condition_one_succeeds(self, conditions: SideObjects, *, is_new: bool) -> None:
        for _ in range(5):
            conditions.delete_object(_NAME)
            etag = None if is_new else conditions.put_object(_NAME, b"before")

            def write(number: int, etag: str | None = etag) -> int | None:
                try:
                    conditions.put_object(_NAME, b"%d" % number, if_match=etag, if_absent=is_new)
                except StoragePreconditionError:
                    return None
                return number

            with ThreadPoolExecutor(8) as pool:
                winners = [number for number in pool.map(write, range(8)) if number is not None]
            stored = conditions.read_object(_NAME)
            assert stored is not None
            assert [b"%d" % number for number in winners] == [stored.data]

    def test_after_close_nothing_is_read_or_put(self, objects: SideObjects, replica: ReplicaUnderTest) -> None:
        client = replica.new_client()
        assert isinstance(client, SideObjects)
        client.close()
        for call in (lambda: client.read_object(_NAME), lambda: client.put_object(_NAME, b"{}")):
            with pytest.raises(StorageClosedError):
                call()
        assert objects.read_object(_NAME) is None

"""`litevfs doctor`: what storages give, and what would mend what they do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from litevfs.errors import StorageError, StorageNotFoundError, StoragePermissionError, TransientStorageError
from litevfs.operations import doctor
from litevfs.operations.doctor import Check, Outcome, examine
from litevfs.operations.doctor_hints import permission_hint
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.testing.odd_s3_server import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    SESSION_TOKEN,
    OddS3Server,
    running_odd_s3_server,
)
from litevfs.testing.s3_oddities import Oddity

FIXTURE = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"
PRIMARY = ["write", "read back", "condition", "lease", "clock", "round trip", "throughput", "delete"]


def by_name(checks: list[Check], role: str) -> dict[str, Check]:
    return {check.name: check for check in checks if check.role == role}


@pytest.fixture
def odd_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Oddity], OddS3Server]]:
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_SESSION_TOKEN": SESSION_TOKEN}
    for name in [name for name in os.environ if name.startswith(("AWS_", "LITESTREAM_"))]:
        monkeypatch.delenv(name)
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        yield lambda oddity: stack.enter_context(running_odd_s3_server(oddity))


def test_a_folder_gives_all_and_is_left_as_it_was(tmp_path: Path):
    checks = examine(str(tmp_path))
    assert [check.outcome for check in checks] == [Outcome.NOTE] + [Outcome.OK] * len(PRIMARY)
    assert list(by_name(checks, "primary")) == PRIMARY
    assert "no LTX file" in checks[0].detail
    assert list(tmp_path.iterdir()) == []


def test_folders_that_did_not_exist_do_not_stay(tmp_path: Path):
    examine(str(tmp_path / "none" / "app"))
    assert list(tmp_path.iterdir()) == []


def test_a_reader_needs_no_write():
    checks = examine(FIXTURE.as_uri(), with_writes=False)
    assert list(by_name(checks, "reader")) == ["list", "read", "range", "round trip", "throughput"]
    assert {check.outcome for check in checks} == {Outcome.OK}
    assert {check.role for check in checks} == {"reader"}


@pytest.mark.s3
def test_a_server_without_conditions_is_said_to_be_so(odd_server: Callable[[Oddity], OddS3Server]):
    server = odd_server(Oddity(name="", seen="", condition="501", batch_delete="501"))
    server.put("db/0000/0000000000000001-0000000000000001.ltx", b"content")
    checks = examine(f"s3://{BUCKET}/db?endpoint={server.endpoint}")
    primary = by_name(checks, "primary")
    assert list(primary) == PRIMARY
    assert primary["condition"].outcome is Outcome.NOTE
    assert "two primaries" in primary["condition"].detail
    assert primary["lease"].outcome is Outcome.NOTE
    assert {check.outcome for name, check in primary.items() if name not in ("condition", "lease")} == {Outcome.OK}
    assert list(server.objects) == ["db/0000/0000000000000001-0000000000000001.ltx"]


@pytest.mark.s3
def test_a_server_that_ignores_conditions_fails(odd_server: Callable[[Oddity], OddS3Server]):
    server = odd_server(Oddity(name="", seen="", condition="ignored"))
    primary = by_name(examine(f"s3://{BUCKET}/db?endpoint={server.endpoint}"), "primary")
    assert primary["condition"].outcome is Outcome.FAILED
    assert "ignores the condition" in primary["condition"].detail
    assert "one primary at most" in str(primary["condition"].mend)
    assert server.objects == {}


class Refusing(MemoryReplicaClient):
    """A client of S3 that may not do what `refused` names."""

    url = "s3://bkt/a/db?endpoint=http://minio:9000"
    refused: tuple[str, ...] = ()

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "refused"):

            def refuse(*_: object, **__: object) -> None:
                raise StoragePermissionError("403 AccessDenied", key="a/db")

            return refuse
        return object.__getattribute__(self, name)


@pytest.mark.parametrize(
    ("refused", "name", "line"),
    [
        (("list_files", "list_from"), "list", '"s3:ListBucket" on "arn:aws:s3:::bkt"'),
        (("read",), "read back", '"s3:GetObject" on "arn:aws:s3:::bkt/a/db/*"'),
        (("write",), "write", '"s3:PutObject" (and "s3:AbortMultipartUpload") on "arn:aws:s3:::bkt/a/db/*"'),
        (("delete",), "delete", '"s3:DeleteObject" on "arn:aws:s3:::bkt/a/db/*"'),
    ],
)
def test_what_is_refused_names_the_line_of_the_policy(
    monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...], name: str, line: str
):
    kind = type("Client", (Refusing,), {"refused": refused})
    store = MemoryStore("doctor")
    monkeypatch.setattr(doctor, "open_replica_client", lambda *_, **__: kind(store))
    failed = [check for check in examine("s3://bkt/a/db") if check.outcome is Outcome.FAILED]
    assert name in [check.name for check in failed]
    assert line in str(next(check.mend for check in failed if check.name == name))


def test_levels_that_are_listed_one_by_one_only_are_no_fault(monkeypatch: pytest.MonkeyPatch):
    kind = type("Client", (Refusing,), {"refused": ("list_from",)})
    store = MemoryStore("one by one")
    kind(store).write(1, 1, 1, b"content", 0)
    monkeypatch.setattr(doctor, "open_replica_client", lambda *_, **__: kind(store))
    checks = by_name(examine("s3://bkt/a/db", with_writes=False), "reader")
    assert checks["list"].outcome is Outcome.OK
    assert checks["list"].detail == "1 files of 7 B on levels 1"


def test_a_refusal_names_the_permission_and_what_its_error_says(monkeypatch: pytest.MonkeyPatch):
    class Unknown(MemoryReplicaClient):
        url = "sftp://user@host/db"

        def list_files(self, level: int, min_txid: int = 1) -> Any:
            raise StoragePermissionError("the host shows another key", hint="check the host key")

        list_from = None

    monkeypatch.setattr(doctor, "open_replica_client", lambda *_, **__: Unknown(MemoryStore("unknown")))
    (check,) = examine("sftp://user@host/db", with_writes=False)
    assert "r-x" in str(check.mend)
    assert str(check.mend).endswith("; if that is allowed: check the host key")


def test_a_range_that_comes_back_wrong_is_found(monkeypatch: pytest.MonkeyPatch):
    class Wrong(MemoryReplicaClient):
        def read(self, file: Any, offset: int = 0, size: int | None = None, **options: Any) -> bytes:
            return super().read(file, 0, size, **options)

    client = Wrong(MemoryStore("wrong-ranges"))
    client.write(0, 1, 1, bytes(range(250)), 0)
    monkeypatch.setattr(doctor, "open_replica_client", lambda *_, **__: client)
    checks = by_name(examine("memory://wrong", with_writes=False), "reader")
    assert checks["range"].outcome is Outcome.FAILED
    assert "does not keep byte ranges" in str(checks["range"].mend)


def test_files_that_cannot_be_deleted_are_named(monkeypatch: pytest.MonkeyPatch):
    class Keeping(MemoryReplicaClient):
        def delete(self, files: Any) -> None:
            raise StorageError("no")

    store = MemoryStore("keeping")
    monkeypatch.setattr(doctor, "open_replica_client", lambda *_, **__: Keeping(store))
    checks = by_name(examine("memory://keeping"), "primary")
    assert checks["delete"].outcome is Outcome.FAILED
    assert "files stay" in checks["clean up"].detail


@pytest.mark.parametrize(("error", "may_stay"), [(StorageNotFoundError, False), (TransientStorageError, True)])
def test_files_are_said_to_stay_only_where_they_may(
    error: type[StorageError], may_stay: bool, monkeypatch: pytest.MonkeyPatch
):
    class Refusing(MemoryReplicaClient):
        def write(self, *_: Any, **__: Any) -> Any:
            raise error("no")

        delete = list_from = list_files = write

    monkeypatch.setattr(doctor, "open_replica_client", lambda *_, **__: Refusing(MemoryStore("refusing")))
    checks = by_name(examine("memory://refusing"), "primary")
    assert checks["write"].outcome is Outcome.FAILED
    assert ("clean up" in checks) == may_stay


@pytest.mark.parametrize(
    ("url", "action", "line"),
    [
        ("gs://bkt/a/db", "list", "allow storage.objects.list on bucket bkt"),
        ("gs://bkt/a/db", "read", "allow storage.objects.get on bucket bkt"),
        ("gs://bkt/a/db", "write", "allow storage.objects.create and .delete (to replace) on bucket bkt"),
        ("gs://bkt/a/db", "delete", "allow storage.objects.delete on bucket bkt"),
        ("abs://acc@box/db", "list", "container box (a SAS token: permission l)"),
        ("az://acc@box/db", "read", "container box (a SAS token: permission r)"),
        ("abs://acc@box/db", "write", "container box (a SAS token: permissions c and w)"),
        ("abs://acc@box/db", "delete", "container box (a SAS token: permission d)"),
        ("oss://bkt/db", "list", '"oss:ListObjects" on "acs:oss:*:*:bkt"'),
        ("oss://bkt/db", "write", '"oss:PutObject" (and "oss:AbortMultipartUpload") on "acs:oss:*:*:bkt/db/*"'),
        ("file:///srv/db", "list", "read and execute (r-x) for this user on the folders below /srv/db"),
        ("sftp://user@host/db", "read", "read (r) for the user of the URL on the files below /db"),
        ("sftp://user@host/db", "write", "write (w) for the user of the URL on /db and the folders below"),
        ("webdav://user@host/db", "list", "the method PROPFIND for the user of the URL on /db and below"),
        ("webdavs://user@host/db", "read", "the method GET for the user of the URL below /db"),
        ("webdav://user@host/db", "write", "the methods PUT, MKCOL and MOVE for the user of the URL on /db and below"),
        ("webdavs://user@host/db", "delete", "the method DELETE for the user of the URL below /db"),
        ("nats://user@host/box/db", "list", 'publish to "$JS.API.STREAM.INFO.OBJ_box"'),
        ("nats://user@host/box", "read", 'publish to "$JS.API.DIRECT.GET.OBJ_box"'),
        ("nats://user@host/box", "write", 'publish to "$O.box.>" and "$JS.API.STREAM.PURGE.OBJ_box"'),
        ("nats://user@host/box", "delete", 'publish to "$O.box.>"'),
        ("http://host/db", "list", "GET and HEAD of /db and all below"),
        ("https://host/db", "read", "GET and HEAD below /db"),
    ],
)
def test_every_storage_names_its_own_permission(url: str, action: str, line: str):
    assert line in str(permission_hint(url.partition(":")[0], action, url))


def test_no_credential_is_in_a_hint():
    for scheme in ("sftp", "webdav", "nats", "gs", "abs", "s3"):
        for action in ("list", "read", "write", "delete"):
            assert "secret" not in str(permission_hint(scheme, action, f"{scheme}://user:secret@host/db"))

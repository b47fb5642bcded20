"""`litevfs doctor`: what storages give, and what would mend what they do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from litevfs.errors import StorageError, StoragePermissionError
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


@pytest.mark.parametrize("scheme", ["s3", "gs", "abs", "az", "oss", "file", "sftp", "http", "https", "webdavs"])
def test_every_storage_has_a_line_for_readers(scheme: str):
    for action in ("list", "read"):
        assert "db" in str(permission_hint(scheme, action, f"{scheme}://user@db/db"))


def test_no_credential_is_in_a_hint():
    assert "secret" not in str(permission_hint("sftp", "list", "sftp://user:secret@host/db"))

"""What holds for every client with its real server, beside the conformance suite and the faults."""

from __future__ import annotations

import os

import pytest

import litevfs
from litevfs.errors import ReplicaError
from litevfs.operations.doctor import Outcome, examine
from litevfs.replica_clients.base import ReplicaClient
from litevfs.testing.conformance_base import ReplicaUnderTest, file_name

pytestmark = pytest.mark.servers


def test_a_client_goes_on_in_the_child_of_a_fork_and_in_its_parent(replica: ReplicaUnderTest, client: ReplicaClient):
    data = os.urandom(300_000)
    replica.put(0, file_name(1, 1), data)
    (file,) = client.list_files(0)
    assert client.read(file, 7, 100) == data[7:107]
    child = os.fork()
    if child == 0:
        try:
            is_right = all(client.read(file, at, 50_000) == data[at : at + 50_000] for at in range(0, 300_000, 50_000))
            is_right = is_right and client.list_files(0) == [file]
            client.close()
            os._exit(0 if is_right else 1)
        finally:
            os._exit(2)
    for at in range(0, 300_000, 50_000):
        assert client.read(file, at, 50_000) == data[at : at + 50_000]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.read(file) == data
    assert client.list_files(0) == [file]


def test_a_replica_of_litestream_03_is_refused_by_name_without_a_wait(replica: ReplicaUnderTest):
    if replica.url.startswith("http"):
        pytest.skip("it has an index, and so LTX files")
    replica.put_path("generations/b16ddcf5c697540f/snapshots/00000000.snapshot.lz4", b"x")
    with pytest.raises(ReplicaError, match=r"Litestream 0\.3.*replicate the database with Litestream 0\.5"):
        litevfs.connect(replica.url, open_timeout="1h")


def test_the_doctor_says_how_a_lease_is_kept_and_leaves_nothing(replica: ReplicaUnderTest):
    scheme = replica.url.partition(":")[0]
    if scheme == "http":
        pytest.skip("a web server's replica is read only")
    checks = examine(replica.url)
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    (lease,) = [check for check in checks if check.name == "lease"]
    if scheme in ("sftp", "webdav"):
        assert lease.outcome is Outcome.NOTE
        assert "reads it back" in lease.detail
    else:
        assert lease.outcome is Outcome.OK
    assert replica.names(0) == set()
    assert {check.name for check in checks if check.outcome is Outcome.OK} >= {"write", "condition", "delete"}

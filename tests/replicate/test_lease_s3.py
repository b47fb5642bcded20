"""Two primaries on S3 servers that answer conditions in their ways, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from litevfs.errors import LitevfsError, ReplicaConflictError
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.replicate import Replicator
from litevfs.testing.odd_s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, SESSION_TOKEN, running_odd_s3_server
from litevfs.testing.s3_oddities import Oddity
from tests.replicate.support import files_of

pytestmark = [pytest.mark.s3]


@pytest.fixture(params=["ignored", "kept", "400", "501"])
def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], S3ReplicaClient]]:
    """Clients of one replica on a server that does this with `If-None-Match`, and always ignores `If-Match`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ExitStack() as stack:
        server = stack.enter_context(running_odd_s3_server(Oddity(name="odd", seen="here", condition=request.param)))

        def connect() -> S3ReplicaClient:
            client = S3ReplicaClient(f"s3://{BUCKET}/db?endpoint={server.endpoint}", read_timeout_s=10)
            stack.callback(client.close)
            return client

        yield connect


def replicator_of(app, client: S3ReplicaClient, **options: object) -> Replicator:
    replicator = Replicator(app.path, client, **options)
    assert replicator.places[0].guard.lease is not None
    replicator.places[0].guard.lease._settle_s = 0.2
    return replicator


def test_the_second_of_two_primaries_stops_until_the_first_has_ended(make_app, connect):
    one, other = make_app("one.db"), make_app("other.db")
    with replicator_of(other, connect(), new_history=True) as second:
        with replicator_of(one, connect()) as first:
            assert first.sync() == 1
            for _ in range(2):
                with pytest.raises(ReplicaConflictError, match="another primary has the lease"):
                    second.sync()
                one.insert()
                first.sync()
        assert second.sync() == 4
    client = connect()
    assert [file.max_txid for file in client.list_files(0)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_of_two_that_start_in_the_same_moment_one_goes_on_and_keeps_what_it_was_told(make_app, connect):
    apps = [make_app(f"{name}.db") for name in "ab"]
    barrier = threading.Barrier(2)
    with ExitStack() as stack:
        replicators = [stack.enter_context(replicator_of(app, connect(), new_history=True)) for app in apps]

        def compete(number: int) -> list[int]:
            """The TXIDs that it was told, up to the first error."""
            told: list[int] = []
            barrier.wait()
            for _ in range(4):
                apps[number].insert()
                try:
                    told.append(replicators[number].sync())
                except LitevfsError:
                    break
            return told

        with ThreadPoolExecutor(2) as pool:
            told = list(pool.map(compete, range(2)))
    assert max(map(len, told)) == 4, told
    assert min(map(len, told)) <= 1, told  # the other heard of it by its next sync
    winner = max(range(2), key=lambda number: len(told[number]))
    txids = [file.header.max_txid for file in files_of(connect())]
    assert set(told[winner]) <= set(txids)

"""Fixtures of the comparison with Litestream's VFS, and `--peer-report FILE`, which writes down what came out."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.fixtures import TEST_BUCKET
from litevfs.testing.s3_proxy import running_s3_proxy
from tests.peer.adapters import Adapter, Kind, ReaderDied, ReaderError, Readers
from tests.peer.record import Record
from tests.peer.situations import Situation
from tests.peer.world import World


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --peer-report, for runs that name this folder."""
    parser.addoption(
        "--peer-report", type=Path, metavar="FILE", help="write what litevfs and Litestream's VFS did in each situation"
    )


MakeWorld = Callable[[Situation, Kind], World]


@pytest.fixture(scope="session")
def readers() -> Iterator[Readers]:
    """The readers of all situations."""
    readers = Readers()
    yield readers
    readers.close()


@pytest.fixture
def make_world(request: pytest.FixtureRequest, readers: Readers, tmp_path: Path) -> Iterator[MakeWorld]:
    """Makes the replica and the primary of a situation; no reader yet."""
    with ExitStack() as stack:

        def make(situation: Situation, kind: Kind) -> World:
            if situation.storage == "file":
                folder = tmp_path / "replica"
                (folder / "ltx").mkdir(parents=True)
                client = open_replica_client(folder.as_uri())
                where: Any = (folder.as_uri(), {}, None, None)
            else:
                server = request.getfixturevalue("s3_server")
                request.getfixturevalue("s3_url")  # sets the credentials
                proxy = stack.enter_context(running_s3_proxy(server.endpoint))
                path = f"peer-{uuid.uuid4().hex[:12]}"
                client = open_replica_client(server.url(TEST_BUCKET, path))
                url = server.url(TEST_BUCKET, path, endpoint=proxy.endpoint)
                where = (url, server.environment(), proxy, request.getfixturevalue("s3_client"))
            stack.callback(client.close)
            return stack.enter_context(World(readers, kind, client, *where, **situation.primary))

        yield make


@pytest.fixture(scope="session")
def peer_version(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The version of Litestream's VFS; skips the test where it cannot be had."""
    try:
        with Adapter("peer", tmp_path_factory.mktemp("empty").as_uri()) as adapter:
            return adapter.version
    except (ReaderError, ReaderDied) as error:
        pytest.skip(f"Litestream's VFS cannot be loaded: {error}")


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """What both readers did, written to the report file at the end of the run if one is wanted."""
    record = Record.begin()
    yield record
    path = request.config.getoption("--peer-report", default=None)
    if path is not None:
        assert record.is_complete, "nothing is written: the run left out situations or one of the readers"
        record.write(path)

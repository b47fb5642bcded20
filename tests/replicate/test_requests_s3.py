"""How many requests a run costs that finds nothing new, over real HTTP to MinIO."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.replica_clients.urls import open_replica_client
from litevfs.replicate import Replicator
from litevfs.testing.s3_proxy import running_s3_proxy
from tests.servers import running_minio, use_bucket

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]


def test_a_run_that_finds_nothing_new_makes_few_requests(app, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """GETs: the lease, the manifest that is not there, one listing, the newest file's header and its trailer.

    PUTs: two tries of what conditions forbid, the lease taken and given back.
    """
    with running_minio(tmp_path) as server, running_s3_proxy(server.endpoint) as proxy:
        use_bucket(server, "counted", monkeypatch)
        url = server.url("counted", "app", endpoint=proxy.endpoint)
        app.insert(50, 3000)
        requests: list[Counter[str]] = []
        for _ in range(3):
            app.close()
            proxy.clear()
            with closing(open_replica_client(url)) as client, Replicator(app.path, client) as replicator:
                assert replicator.sync() == 1
            requests.append(Counter(request.method for request in proxy.requests))
            app.db = app.connect()
    assert requests[1:] == [{"GET": 5, "PUT": 4}] * 2

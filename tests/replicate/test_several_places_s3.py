"""One database to a folder and to MinIO, which is stopped and started again meanwhile."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from litevfs.errors import TransientStorageError
from litevfs.operations.restore import restore
from litevfs.replica_clients.urls import open_replica_client
from litevfs.replicate import Replicator
from tests.replicate.support import source_bytes
from tests.servers import running_minio, use_bucket
from tests.support import wait_until

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]


@pytest.mark.parametrize("max_pending_bytes", [None, 100_000])
def test_a_server_that_was_stopped_and_started_again_gets_all_and_delays_no_other_place(
    app, client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_pending_bytes: int | None
):
    (tmp_path / "minio").mkdir()
    with ExitStack() as running, ExitStack() as opened:
        server = running.enter_context(running_minio(tmp_path / "minio"))
        use_bucket(server, "places", monkeypatch)
        s3 = opened.enter_context(closing(open_replica_client(server.url("places", "app"))))
        options: dict[str, Any] = {"sync_interval_s": 0.05, "max_pending_bytes": max_pending_bytes}
        replicator = opened.enter_context(Replicator(app.path, client, places=[s3], **options))
        replicator.start()
        for _ in range(2):
            app.insert(5)
            txid = replicator.sync()
            assert all(place.uploaded_txid >= txid for place in replicator.status.places)
            running.close()
            for _ in range(5):
                app.insert(20, 2000)
                newest = replicator.status.txid
                wait_until(lambda newest=newest: replicator.status.places[0].uploaded_txid > newest)
            with pytest.raises(TransientStorageError, match="to s3://places/app"):
                replicator.sync(timeout_s=0.5)
            assert replicator.status.places[0].last_error is None
            running.enter_context(running_minio(tmp_path / "minio", urlsplit(server.endpoint).port or 0))
            replicator.sync(timeout_s=60)
            for place in (client, s3):
                path = tmp_path / "restored.db"
                path.unlink(missing_ok=True)
                restore(place, path, integrity_check=True)
                assert path.read_bytes() == source_bytes(app.path), place.url
        assert replicator.status.pending_files == 0

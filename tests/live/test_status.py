"""What a replica says of itself after a known workload, and what it must never say."""

from __future__ import annotations

import json
import logging

import pytest

import litevfs
from litevfs.errors import LitevfsError, TransientStorageError
from litevfs.live.health import State
from litevfs.live.replica import Replica
from litevfs.live.status import ReplicaStatus
from litevfs.options import Options
from litevfs.replica_clients.urls import open_replica_client
from litevfs.states.chunks import MIN_SLOTS
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, status_of

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAVERYSECRETNAME",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIverysecretkey",
    "AWS_SESSION_TOKEN": "FwoGZXIverysecrettoken",
}
SSE_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


@pytest.mark.plan("K06")
@pytest.mark.parametrize("block_size", [0, 1 << 14], ids=["local", "remote"])
def test_counters_after_a_known_workload(block_size):
    with Script(block_size=block_size) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t AS SELECT randomblob(9000) AS b")
        primary.commit("INSERT INTO t VALUES(randomblob(9000))")
        replica = Replica(Options(replica_url=script.url))
        assert replica.status().state == State.OPENING
        assert (replica.status().txid, replica.status().time, replica.status().lag_s) == ("0" * 16, None, None)
        replica.refresh()
        replica.refresh()
        status = replica.status()
        assert (status.state, status.txid, status.epoch) == ("current", "0000000000000002", 0)
        assert status.time == "2026-01-01T00:00:02.000Z"
        assert (status.page_size, status.commit) == (4096, len(primary.images[2]) // 4096)
        assert (status.list_requests, status.get_requests) == (sum(script.lists.values()), len(script.reads)) == (6, 2)
        assert status.bytes_read == sum(size for _, _, size in script.reads)
        assert (status.errors, status.retries, status.last_error) == (0, 0, None)
        for pgno in (1, 2, 2, 3, 3, 3):
            replica.pages.read(replica.snapshot, pgno)
        status = replica.status()
        assert (status.cache_misses, status.cache_hits) == (3, 3)
        replica.pages.counters.hits = -2  # pages that were decoded along with others are still to be read
        assert replica.status().cache_hits == 0
        assert status.cache_bytes > 0
        assert status.index_bytes == 18 * MIN_SLOTS
        assert 0 <= status.lag_s < 5
        replica.close()
        assert replica.status().state == State.CLOSED


@pytest.mark.plan("K06")
def test_reads_of_pages_from_local_files_are_counted():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t AS SELECT randomblob(9000) AS b")
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        replica.pages.read(replica.snapshot, 2)
        status = replica.status()
        replica.close()
        assert (status.get_requests, status.bytes_read) == (len(script.reads), sum(size for *_, size in script.reads))


@pytest.mark.plan("E06", "K06")
def test_each_state_of_a_replica_is_reached(monkeypatch):
    with Script() as script, Primary(script.writer) as primary:
        replica = Replica(Options(replica_url=script.url))
        with pytest.raises(LitevfsError):
            replica.refresh()
        seen = [replica.status().state]
        primary.commit("CREATE TABLE t(x)")
        replica.refresh()
        seen.append(replica.status().state)

        def fail(level, files):
            raise TransientStorageError("away")

        script.on_list = fail
        with pytest.raises(TransientStorageError):
            replica.refresh()
        seen.append(replica.status().state)
        monkeypatch.setattr("litevfs.live.health.STALLED_AFTER_S", 0.0)
        seen.append(replica.status().state)
        script.on_list = None
        replica.refresh()
        seen.append(replica.status().state)
        replica.close()
        seen.append(replica.status().state)
        assert seen == ["opening", "current", "behind", "stalled", "current", "closed"]


@pytest.mark.plan("K06")
def test_the_log_says_where_a_replica_is_and_when_it_fails_and_recovers(caplog):
    caplog.set_level(logging.DEBUG, "litevfs")
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()

        def fail(level, files):
            raise TransientStorageError("away")

        script.on_list = fail
        for _ in range(3):
            with pytest.raises(TransientStorageError):
                replica.refresh()
        script.on_list = None
        replica.refresh()
        replica.close()
    said = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "litevfs.live.replica"]
    assert said == [
        ("DEBUG", f"{script.url} is at TXID 0000000000000001"),
        ("WARNING", f"{script.url} stays at its last state: away"),
        ("INFO", f"{script.url} is up to date again"),
    ]


def test_a_status_survives_json():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        status = replica.status()
        read = ReplicaStatus(**json.loads(status.to_json()))
        assert read == status
        replica.close()


def test_a_timestamp_outside_of_the_calendar_does_not_break_the_status():
    with Script() as script, Primary(script.writer) as primary:
        primary.start_ms = 2**62
        primary.commit("CREATE TABLE t(x)")
        with connected(script.url) as con:
            assert status_of(con)["time"] == "9999-12-31T23:59:59.999Z"
            assert one(con, "PRAGMA litestream_time") == "9999-12-31T23:59:59.999Z"


# --- credentials ------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret_environment(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def chain(error: BaseException | None) -> list[str]:
    """Everything a traceback would print of an error and its causes."""
    shown = []
    while error is not None:
        shown += [str(error), repr(error), repr(getattr(error, "__dict__", {}))]
        error = error.__cause__ or error.__context__
    return shown


def none_is_shown(texts: list[str]) -> bool:
    hidden = [*SECRETS.values(), SSE_KEY, SSE_KEY.rstrip("="), "very-secret-password"]
    return not any(secret in text for secret in hidden for text in texts)


@pytest.mark.plan("K09")
@pytest.mark.parametrize(
    "url",
    [
        "s3://user:very-secret-password@bucket/path",
        "s3://bucket/path?endpoint=http://user:very-secret-password@127.0.0.1:1/",
        f"s3://bucket/path?sseCustomerKey={SSE_KEY}&sseCustomerAlgorithm=AES128",
        f"s3://bucket/path?sseCustomerKey={SSE_KEY}&sseCustomerKeyMD5=wrong",
        f"s3://bucket/path?sseCustomerKey={SSE_KEY}&regoin=x",
        f"s3://bucket/path?sseCustomerKey={SSE_KEY}#fragment",
        f"s4://user:very-secret-password@bucket/path?sseCustomerKey={SSE_KEY}",
        f"file:///path?sseCustomerKey={SSE_KEY}",
        "webdav://user:very-secret-password@host/path",
        f"memory://x?sseCustomerKey={SSE_KEY}",
        "file://user:very-secret-password@host/path",
    ],
)
def test_errors_of_bad_urls_do_not_show_credentials(url, secret_environment, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(LitevfsError) as caught:
        litevfs.connect(url, open_timeout="50ms", read_timeout="50ms")
    assert none_is_shown([*chain(caught.value), caplog.text])


@pytest.mark.s3
@pytest.mark.plan("K09")
def test_a_working_and_a_failing_s3_replica_do_not_show_credentials(s3_url, s3_server, monkeypatch, caplog):
    url = s3_url()
    secret = s3_server.secret_key
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    client = open_replica_client(url)
    with Primary(client) as primary:
        primary.commit("CREATE TABLE t(x)")
        with connected(url) as con:
            shown += [one(con, "PRAGMA litestream_status"), repr(con), con.filename, repr(client)]
    client.close()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIverysecretkey")
    options = Options(replica_url=url, read_timeout_s=1.0)
    replica = Replica(options)
    try:
        replica.refresh()
    except LitevfsError as error:  # a server that checks signatures refuses it
        shown += chain(error)
    shown += [replica.status().to_json(), repr(replica.fetcher.client), repr(options), repr(replica)]
    replica.close()
    shown.append("\n".join(r.getMessage() for r in caplog.records if r.name.startswith("litevfs")))
    assert none_is_shown(shown)
    assert not any(secret in text for text in shown if len(secret) > 8)

"""OpenTelemetry spans of storage requests, recorded by OpenTelemetry's own SDK in a process of their own.

In the process of the tests, a tracer provider would stay for all later tests: it can be set once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from litevfs.replica_clients.file import FileReplicaClient
from litevfs.testing.odd_s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, SESSION_TOKEN, running_odd_s3_server
from litevfs.testing.s3_oddities import Oddity
from tests.primary import Primary

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

import litevfs
from litevfs.replica_clients.base import FindsWays, LTXFileInfo, SideObjects

url = sys.argv[1]
with trace.get_tracer("application").start_as_current_span("a request of the application"):
    client = litevfs.open_replica_client(url)
    (file,) = client.list_files(0)
    size = len(client.read(file))
    try:
        client.read(LTXFileInfo(0, 7, 8, size=100, modified_ms=0), 10, 5)
    except litevfs.StorageError:
        pass
    if isinstance(client, SideObjects):
        client.read_object("no.json")
        client.put_object("some.json", b"{}")
    written = client.write(1, 1, 1, client.read(file), 1_000)
    client.delete([written])
    client.close()
connection = litevfs.connect(url, poll_interval="0")
connection.execute("SELECT count(*) FROM t").fetchall()
connection.close()
print(json.dumps([
    {
        "name": span.name, "kind": span.kind.name, "status": span.status.status_code.name,
        "text": span.status.description, "attributes": dict(span.attributes),
        "parent": span.parent is not None, "events": len(span.events),
    }
    for span in exporter.get_finished_spans()
]))
"""


def spans_of(url: str, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SECRET_KEY not in done.stdout
    assert SESSION_TOKEN not in done.stdout
    assert ACCESS_KEY not in done.stdout
    return json.loads(done.stdout)


def check(spans: list[dict[str, Any]], url: str, size: int) -> None:
    *_, application = [index for index, span in enumerate(spans) if not span["name"].startswith("litevfs")]
    ours, reader = spans[:application], spans[application + 1 :]
    place = {"litevfs.replica": url, "litevfs.level": 0}
    first = {"litevfs.min_txid": "0000000000000001", "litevfs.max_txid": "0000000000000001"}
    assert all((span["kind"], span["parent"]) == ("CLIENT", True) for span in ours)
    # One for each call, also where a client makes one of another.
    expected = ("list_files", "read", "read", "read_object", "put_object", "read", "write", "delete")
    assert [span["name"] for span in ours] == [f"litevfs {name}" for name in expected]
    listing, read, missing, *_ = ours
    assert listing["attributes"] == place | {"litevfs.files": 1}
    assert read["attributes"] == place | first | {"litevfs.offset": 0, "litevfs.bytes": size}
    assert (missing["status"], missing["attributes"]["error.type"]) == ("ERROR", "StorageNotFoundError")
    assert (missing["attributes"]["litevfs.max_txid"], missing["attributes"]["litevfs.offset"]) == (f"{8:016x}", 10)
    assert missing["text"]
    assert missing["events"] == 0  # no traceback
    write = ours[-2]
    assert write["attributes"] == place | first | {"litevfs.level": 1, "litevfs.bytes": size}
    assert sum(span["attributes"].get("litevfs.bytes", 0) for span in reader) >= size
    assert any(span["attributes"].get("litevfs.files") for span in reader)


@pytest.mark.slow
def test_each_storage_request_is_a_span_with_level_txids_bytes_and_outcome(tmp_path: Path):
    pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry's SDK (pip install opentelemetry-sdk)")
    client = FileReplicaClient(tmp_path / "replica")
    with Primary(client) as primary:
        primary.commit("CREATE TABLE t (a)")
    (file,) = client.list_files(0)
    client.close()
    spans = spans_of(str(tmp_path / "replica"))
    check(spans, client.url, file.size)
    objects = [span for span in spans if "litevfs.object" in span["attributes"]]
    assert [span["attributes"] for span in objects] == [
        {"litevfs.replica": client.url, "litevfs.object": "no.json", "litevfs.found": 0},
        {"litevfs.replica": client.url, "litevfs.object": "some.json", "litevfs.bytes": 2},
    ]


@pytest.mark.slow
def test_spans_of_s3_hold_no_credentials(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry's SDK (pip install opentelemetry-sdk)")
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_SESSION_TOKEN": SESSION_TOKEN}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with running_odd_s3_server(Oddity(name="odd", seen="here")) as server:
        url = f"s3://{BUCKET}/db?endpoint={server.endpoint}"
        from litevfs.replica_clients.s3.client import S3ReplicaClient

        client = S3ReplicaClient(url, read_timeout_s=10)
        with Primary(client) as primary:
            primary.commit("CREATE TABLE t (a)")
        (file,) = client.list_files(0)
        client.close()
        check(spans_of(url, keys), client.url, file.size)


def test_a_process_that_does_not_trace_does_not_load_opentelemetry(tmp_path: Path):
    program = (
        "import sys, litevfs; litevfs.open_replica_client(sys.argv[1]).close(); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"

"""Opening, point queries, a scan and a poll of the same replica in every storage, with 20 ms a request.

Real servers of this machine behind proxies that delay; a storage whose server or package is missing is left out, and
said. Rows are compared with SQLite's own answers on the file; times are never asserted. What a request costs in CPU is
measured without the delay, as reads of one block each.
"""

from __future__ import annotations

import getpass
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from _harness import Dataset, Result, assert_equal, dataset, digest, parse_arguments, report, seconds  # noqa: E402

import litevfs  # noqa: E402
from litevfs.errors import LitevfsError  # noqa: E402
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient  # noqa: E402
from litevfs.replica_clients.http.index import write_index  # noqa: E402
from litevfs.replica_clients.urls import open_replica_client  # noqa: E402
from litevfs.testing.s3_proxy import running_s3_proxy  # noqa: E402
from litevfs.testing.s3_server import running_s3_server  # noqa: E402
from litevfs.testing.tcp_proxy import TCPProxy  # noqa: E402
from tests.replica_clients import store_servers as servers  # noqa: E402

DELAY_S = 0.02
SMALL_ROWS, FULL_ROWS = 5_000, 100_000
POINTS, POLLS, READS = 20, 5, 100
BLOCK_BYTES = 1 << 16
SCAN = "SELECT sum(amount), sum(length(note)) FROM orders"
POINT = "SELECT customer, note FROM orders WHERE id = ?"
OPEN, ONE, WHOLE, POLL, CPU = "open + first query", "point query", "scan", "poll (list level 0)", "CPU a read of 64 KiB"

URLs = tuple[str, str]
"""The replica's URL with the delay, and without."""


@contextmanager
def file(work: Path, data: Dataset) -> Iterator[URLs]:
    yield data.replica_url, data.replica_url


@contextmanager
def memory(work: Path, data: Dataset) -> Iterator[URLs]:
    url = f"memory://stores-{data.rows}"
    upload(url, data)
    yield url, url


@contextmanager
def http(work: Path, data: Dataset) -> Iterator[URLs]:
    """nginx with an index; the standard library's server where there is none, which ignores ranges."""
    folder = Path(data.replica_url.removeprefix("file://"))
    source = open_replica_client(data.replica_url)
    served = work / "served"
    (served / "app").mkdir(parents=True)
    (served / "app" / "ltx").symlink_to(folder / "ltx")
    (served / "app" / "index.json").write_bytes(write_index(source.list_files(9), 1))
    source.close()
    with ExitStack() as stack:
        try:
            endpoint = stack.enter_context(servers.nginx(served, work))
        except pytest.skip.Exception:
            endpoint = stack.enter_context(servers.static_server(served))
        proxy = stack.enter_context(running_s3_proxy(endpoint, delay_s=DELAY_S))
        yield f"{proxy.endpoint}/app", f"{endpoint}/app"


@contextmanager
def s3(work: Path, data: Dataset) -> Iterator[URLs]:
    with running_s3_server() as server, running_s3_proxy(server.endpoint, delay_s=DELAY_S) as proxy:
        os.environ.update(server.environment())
        client = server.boto3_client()
        client.create_bucket(Bucket="bench")
        client.close()
        url = server.url("bench", "app")
        upload(url, data)
        yield url.replace(server.endpoint, proxy.endpoint), url


@contextmanager
def gs(work: Path, data: Dataset) -> Iterator[URLs]:
    """The endpoint is the environment's, so it is set as each client is made."""
    with servers.fake_gcs(work) as endpoint, running_s3_proxy(endpoint, delay_s=DELAY_S) as proxy:
        url = f"gs://{servers.BUCKET}/app"
        os.environ["STORAGE_EMULATOR_HOST"] = endpoint
        upload(url, data)
        os.environ["STORAGE_EMULATOR_HOST"] = proxy.endpoint
        try:
            yield url, f"{url}#{endpoint}"
        finally:
            del os.environ["STORAGE_EMULATOR_HOST"]


@contextmanager
def azure(work: Path, data: Dataset) -> Iterator[URLs]:
    os.environ["LITESTREAM_AZURE_ACCOUNT_KEY"] = servers.AZURE_KEY
    with servers.azurite(work) as endpoint:
        origin = endpoint.removesuffix(f"/{servers.AZURE_ACCOUNT}")
        with running_s3_proxy(origin, delay_s=DELAY_S) as proxy:
            base = f"abs://{servers.AZURE_ACCOUNT}@{servers.BUCKET}/app?endpoint="
            client = open_replica_client(base + endpoint)
            make_container(client)
            client.close()
            upload(base + endpoint, data)
            yield f"{base}{proxy.endpoint}/{servers.AZURE_ACCOUNT}", base + endpoint


def make_container(client: ReplicaClient) -> None:
    """litevfs makes no containers: by the client's own signed request."""
    url = client._url("", {"restype": "container"})  # type: ignore[attr-defined]
    client._exchange.call("PUT", "PUT", url, {"Content-Length": "0"}, expected=(201, 409))  # type: ignore[attr-defined]


@contextmanager
def webdav(work: Path, data: Dataset) -> Iterator[URLs]:
    os.environ["LITEVFS_WEBDAV_PASSWORD"] = servers.WEBDAV_PASSWORD
    (work / "dav").mkdir()
    with ExitStack() as stack:
        endpoint = stack.enter_context(servers.rclone_webdav(work / "dav", work))
        proxy = stack.enter_context(running_s3_proxy(f"http://{endpoint}", delay_s=DELAY_S))
        url = f"webdav://{servers.WEBDAV_USER}@{endpoint}/app"
        upload(url, data)
        yield url.replace(endpoint, proxy.endpoint.removeprefix("http://")), url


@contextmanager
def sftp(work: Path, data: Dataset) -> Iterator[URLs]:
    with servers.sshd(work) as (port, keys), TCPProxy(("127.0.0.1", port), delay_s=DELAY_S) as proxy:
        host_key = "%20".join((keys / "host_key.pub").read_text().split()[:2]).replace("+", "%2B")
        options = f"absolute=true&keyPath={keys}/client_key&hostKey={host_key}"
        url = f"sftp://{getpass.getuser()}@127.0.0.1:%d{work}/app?{options}"
        url = url.replace("%20", "%%20").replace("%2B", "%%2B")
        upload(url % port, data)
        yield url % proxy.port, url % port


@contextmanager
def nats(work: Path, data: Dataset) -> Iterator[URLs]:
    import asyncio

    import nats as library

    async def make_bucket(port: int) -> None:
        client = await library.connect(
            f"nats://127.0.0.1:{port}", user=servers.NATS_USER, password=servers.NATS_PASSWORD
        )
        await client.jetstream().create_object_store("bench")
        await client.close()

    os.environ["LITEVFS_NATS_PASSWORD"] = servers.NATS_PASSWORD
    with servers.nats_server(work) as port, TCPProxy(("127.0.0.1", port), delay_s=DELAY_S) as proxy:
        asyncio.run(make_bucket(port))
        url = f"nats://{servers.NATS_USER}@127.0.0.1:%d/bench"
        upload(url % port, data)
        yield url % proxy.port, url % port


STORES: dict[str, Callable[[Path, Dataset], object]] = {
    "file": file,
    "memory": memory,
    "http": http,
    "s3": s3,
    "gs": gs,
    "abs": azure,
    "sftp": sftp,
    "webdav": webdav,
    "nats": nats,
}
SMALL_STORES = ("file", "memory", "http")


def upload(url: str, data: Dataset) -> None:
    client = open_replica_client(url)
    with data.ltx_file.open("rb") as content:
        client.write(9, 1, 1, content, 1)
    client.close()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    data = dataset(SMALL_ROWS if arguments.small else FULL_ROWS)
    results = []
    for name in SMALL_STORES if arguments.small else STORES:
        with tempfile.TemporaryDirectory(prefix="litevfs-stores-") as work:
            try:
                with STORES[name](Path(work), data) as (url, direct):  # type: ignore[attr-defined]
                    results.append(measured(name, url, direct, data))
            except (pytest.skip.Exception, ImportError) as missing:
                print(f"without {name}: {missing}")
    report(f"{data.rows:,} rows, {DELAY_S * 1000:.0f} ms a request (file and memory: none)", results, arguments)


def measured(name: str, url: str, direct: str, data: Dataset) -> Result:
    rng = random.Random(3)
    ids = [rng.randrange(data.rows) for _ in range(POINTS)]
    began = time.perf_counter()
    connection = litevfs.connect(url)
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    opened = time.perf_counter() - began
    points = []
    for number in ids:
        began = time.perf_counter()
        row = connection.execute(POINT, (number,)).get
        points.append(time.perf_counter() - began)
        assert_equal(f"{name}: {POINT}", {name: digest(row), "sqlite": digest(data.answer(POINT, (number,)))})
    connection.close()
    connection = litevfs.connect(url)
    began = time.perf_counter()
    total = connection.execute(SCAN).get
    scanned = time.perf_counter() - began
    assert_equal(f"{name}: scan", {name: digest(total), "sqlite": digest(data.answer(SCAN))})
    connection.close()
    values = {OPEN: opened, ONE: median(points), WHOLE: scanned, POLL: polled(url), CPU: cpu_a_read(direct)}
    return Result(name, {column: seconds(value) for column, value in values.items()}, samples=values)


def polled(url: str) -> float:
    client = open_replica_client(url)
    times = []
    for _ in range(POLLS):
        began = time.perf_counter()
        assert client.list_files(0, 2) == []
        times.append(time.perf_counter() - began)
    client.close()
    return median(times)


def cpu_a_read(direct: str) -> float:
    url, _, emulator = direct.partition("#")
    if emulator:
        os.environ["STORAGE_EMULATOR_HOST"] = emulator
    client = open_replica_client(url)
    (whole,) = client.list_files(9)
    size = min(BLOCK_BYTES, whole.size)
    offsets = [random.Random(4).randrange(max(1, whole.size - size)) for _ in range(READS)]
    read(client, whole, 0, size)
    began = time.process_time()
    for offset in offsets:
        read(client, whole, offset, size)
    spent = time.process_time() - began
    client.close()
    return spent / READS


def read(client: ReplicaClient, file: LTXFileInfo, offset: int, size: int) -> None:
    if len(client.read(file, offset, size)) != size:
        raise LitevfsError(f"fewer than {size} bytes at {offset} of {client.key(file)}")


if __name__ == "__main__":
    main()

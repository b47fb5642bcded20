"""Empty replicas on servers of each storage but S3, as the conformance suite wants them; looked at without clients."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3

from litevfs.replica_clients.azure import AzureReplicaClient
from litevfs.replica_clients.azure_access import AzureAccess
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.gs import GSReplicaClient
from litevfs.replica_clients.http.client import HTTPReplicaClient
from litevfs.replica_clients.http.index import write_index
from litevfs.replica_clients.nats import NATSReplicaClient
from litevfs.replica_clients.sftp import SFTPReplicaClient
from litevfs.replica_clients.webdav import WebDAVReplicaClient
from litevfs.testing.conformance_base import TIMESTAMP_MS
from tests.replica_clients.store_servers import (
    AZURE_ACCOUNT,
    BUCKET,
    NATS_PASSWORD,
    NATS_USER,
    WEBDAV_PASSWORD,
    WEBDAV_USER,
)

GS_PART_SIZE = 256 << 10
AZURE_PART_SIZE = 200_000


def store_whole(path: Path, data: bytes, mtime_s: int | None = None) -> None:
    """In one step: a server that still sends the file that was there would send bytes of the new one behind it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_bytes(data)
    if mtime_s is not None:
        os.utime(temporary, (0, mtime_s))
    temporary.replace(path)


class FolderOfFiles:
    """A replica whose files lie in a folder of this machine, looked at there."""

    folder: Path
    level_folder = "ltx/{}/"

    def file_path(self, level: int, name: str) -> Path:
        return self.folder / self.level_folder.format(level) / name

    def get(self, level: int, name: str) -> bytes | None:
        path = self.file_path(level, name)
        return path.read_bytes() if path.exists() else None

    def names(self, level: int) -> set[str]:
        folder = self.file_path(level, "")
        return {path.name for path in folder.iterdir()} if folder.exists() else set()

    def timestamp_ms(self, level: int, name: str) -> int:
        return self.file_path(level, name).stat().st_mtime_ns // 1_000_000


class GSReplica:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.path = f"replicas/{uuid.uuid4().hex[:12]}"
        self.url = f"gs://{BUCKET}/{self.path}"
        self.objects = f"{endpoint}/storage/v1/b/{BUCKET}/o"
        self.http = urllib3.PoolManager()

    def new_client(self) -> GSReplicaClient:
        return GSReplicaClient(self.url, part_size=GS_PART_SIZE)

    def key(self, level: int, name: str) -> str:
        return f"{self.path}/ltx/{level}/{name}"

    def put(self, level: int, name: str, data: bytes) -> None:
        self.put_path(f"ltx/{level}/{name}", data)

    def put_path(self, path: str, data: bytes) -> None:
        url = f"{self.endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name="
        answer = self.http.request("POST", url + quote(f"{self.path}/{path}", safe=""), body=data)
        assert answer.status == 200, answer.data

    def get(self, level: int, name: str) -> bytes | None:
        answer = self.http.request("GET", f"{self.objects}/{quote(self.key(level, name), safe='')}?alt=media")
        return None if answer.status == 404 else answer.data

    def names(self, level: int) -> set[str]:
        prefix = self.key(level, "")
        answer = json.loads(self.http.request("GET", f"{self.objects}?prefix={quote(prefix, safe='')}").data)
        return {item["name"].removeprefix(prefix) for item in answer.get("items", ())}

    def timestamp_ms(self, level: int, name: str) -> int:
        answer = self.http.request("GET", f"{self.objects}/{quote(self.key(level, name), safe='')}")
        text = json.loads(answer.data)["metadata"]["litestream-timestamp"]
        return round(datetime.fromisoformat(text).timestamp() * 1000)


class AzureReplica:
    """Looks at the storage by requests of its own; only their signature is the client's."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.path = f"replicas/{uuid.uuid4().hex[:12]}"
        self.url = self.url_at(endpoint)
        self.http = urllib3.PoolManager()
        self._access = AzureAccess(AZURE_ACCOUNT)
        self.request("PUT", "", "?restype=container")

    def url_at(self, endpoint: str) -> str:
        return f"abs://{AZURE_ACCOUNT}@{BUCKET}/{self.path}?endpoint={endpoint}"

    def request(self, method: str, key: str, query: str = "", **headers: str) -> urllib3.BaseHTTPResponse:
        body = headers.pop("body", "").encode("latin-1")
        url = f"{self.endpoint}/{BUCKET}" + (f"/{quote(key)}" if key else "") + query
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers["Content-Length"] = str(len(body))
        signed = self._access.authorize(method, url, headers, None)
        return self.http.request(method, url, headers=signed, body=body)

    def new_client(self) -> AzureReplicaClient:
        return AzureReplicaClient(self.url, part_size=AZURE_PART_SIZE)

    def key(self, level: int, name: str) -> str:
        return f"{self.path}/ltx/{level}/{name}"

    def put(self, level: int, name: str, data: bytes) -> None:
        self.put_path(f"ltx/{level}/{name}", data)

    def put_path(self, path: str, data: bytes) -> None:
        body = data.decode("latin-1")
        answer = self.request("PUT", f"{self.path}/{path}", x_ms_blob_type="BlockBlob", body=body)
        assert answer.status == 201, answer.data

    def get(self, level: int, name: str) -> bytes | None:
        answer = self.request("GET", self.key(level, name))
        return None if answer.status == 404 else answer.data

    def names(self, level: int) -> set[str]:
        prefix = self.key(level, "")
        answer = self.request("GET", "", f"?restype=container&comp=list&prefix={quote(prefix, safe='')}")
        names = [blob.findtext("Name") or "" for blob in ET.fromstring(answer.data).iterfind("Blobs/Blob")]
        return {name.removeprefix(prefix) for name in names}

    def timestamp_ms(self, level: int, name: str) -> int:
        text = self.request("HEAD", self.key(level, name)).headers["x-ms-meta-litestreamtimestamp"]
        return round(datetime.fromisoformat(text).timestamp() * 1000)


class WebDAVReplica(FolderOfFiles):
    def __init__(self, endpoint: str, folder: Path) -> None:
        self.endpoint = endpoint
        self.path = f"replicas/{uuid.uuid4().hex[:12]}"
        self.folder = folder / self.path
        self.url = self.url_at(endpoint)
        self.http = urllib3.PoolManager()

    def url_at(self, endpoint: str) -> str:
        return f"webdav://{WEBDAV_USER}@{endpoint}/{self.path}"

    def new_client(self) -> WebDAVReplicaClient:
        return WebDAVReplicaClient(self.url)

    def put(self, level: int, name: str, data: bytes) -> None:
        self.put_path(f"ltx/{level}/{name}", data)

    def put_path(self, path: str, data: bytes) -> None:
        *parts, name = f"{self.path}/{path}".split("/")
        for count in range(1, len(parts) + 1):
            self.request("MKCOL", "/".join(parts[:count]) + "/")
        # Elsewhere first: a file is never there in part.
        temporary, target = f"{self.path}/{uuid.uuid4().hex}", "/".join([*parts, quote(name)])
        assert self.request("PUT", temporary, body=data) == 201
        moved = self.request("MOVE", temporary, Destination=f"http://{self.endpoint}/{target}", Overwrite="T")
        assert moved in (201, 204)

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> int:
        login = urllib3.make_headers(basic_auth=f"{WEBDAV_USER}:{WEBDAV_PASSWORD}")
        url = f"http://{self.endpoint}/{path}"
        return self.http.request(method, url, body=body, headers={**login, **headers}).status

    def timestamp_ms(self, level: int, name: str) -> int:
        raise NotImplementedError("WebDAV keeps no time of a client's")


def url_at(port: int, keys: Path, path: Path, known_hosts: str = "") -> str:
    """Without a file of known hosts, the key of the server is in the URL, so that the port may be a proxy's."""
    host = f"knownHosts={keys}/{known_hosts}"
    if not known_hosts:
        host = "hostKey=" + quote(" ".join((keys / "host_key.pub").read_text().split()[:2]), safe="")
    return f"sftp://{getpass.getuser()}@127.0.0.1:{port}{path}?absolute=true&keyPath={keys}/client_key&{host}"


class SFTPReplica(FolderOfFiles):
    def __init__(self, port: int, keys: Path, folder: Path) -> None:
        self.port, self.keys, self.folder = port, keys, folder
        self.url = url_at(port, keys, folder)
        self._puts = 0

    def new_client(self) -> SFTPReplicaClient:
        return SFTPReplicaClient(self.url)

    def put_path(self, path: str, data: bytes) -> None:
        (self.folder / path).parent.mkdir(parents=True)
        (self.folder / path).write_bytes(data)

    def put(self, level: int, name: str, data: bytes) -> None:
        path = self.file_path(level, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._puts += 1  # times are whole seconds
        store_whole(path, data, TIMESTAMP_MS // 1000 + self._puts)


class NATSReplica:
    def __init__(self, port: int) -> None:
        self.port = port
        self.bucket = f"replica-{uuid.uuid4().hex[:12]}"
        self.url = f"nats://{NATS_USER}@127.0.0.1:{port}/{self.bucket}"
        self.run(lambda js: js.create_object_store(self.bucket))

    def run(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        import nats

        async def connected() -> Any:
            client = await nats.connect(f"nats://127.0.0.1:{self.port}", user=NATS_USER, password=NATS_PASSWORD)
            try:
                return await call(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(connected())

    def new_client(self) -> NATSReplicaClient:
        return NATSReplicaClient(self.url)

    def key(self, level: int, name: str) -> str:
        return f"ltx/{level}/{name}"

    def put(self, level: int, name: str, data: bytes) -> None:
        self.put_path(self.key(level, name), data)

    def put_path(self, path: str, data: bytes) -> None:
        async def put(js: Any) -> None:
            await (await js.object_store(self.bucket)).put(path, data)

        self.run(put)

    def get(self, level: int, name: str) -> bytes | None:
        import nats.js.errors

        async def get(js: Any) -> bytes | None:
            try:
                return (await (await js.object_store(self.bucket)).get(self.key(level, name))).data
            except nats.js.errors.ObjectNotFoundError:
                return None

        return self.run(get)

    def names(self, level: int) -> set[str]:
        import nats.js.errors

        prefix = self.key(level, "")

        async def names(js: Any) -> set[str]:
            try:
                listed = await (await js.object_store(self.bucket)).list()
            except nats.js.errors.NotFoundError:
                return set()
            found = [info.name for info in listed if not info.deleted]
            return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}

        return self.run(names)

    def timestamp_ms(self, level: int, name: str) -> int:
        async def timestamp(js: Any) -> str:
            info = await (await js.object_store(self.bucket)).get_info(self.key(level, name))
            (text,) = info.headers["Litestream-Timestamp"]
            return text

        return round(datetime.fromisoformat(self.run(timestamp)).timestamp() * 1000)


class FolderReplica(FolderOfFiles):
    """A folder that a web server serves; `level_folder` names its layout, and `is_indexed` says how it is listed."""

    def __init__(self, url: str, folder: Path, level_folder: str = "ltx/{}/", *, is_indexed: bool) -> None:
        self.url, self.folder = url, folder
        self.level_folder, self._is_indexed = level_folder, is_indexed
        self._puts = 0
        (folder / "ltx").mkdir(parents=True, exist_ok=True)
        self.index()

    def new_client(self) -> HTTPReplicaClient:
        return HTTPReplicaClient(self.url)

    def put(self, level: int, name: str, data: bytes) -> None:
        path = self.file_path(level, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._puts += 1  # the servers' versions have a resolution of a second
        store_whole(path, data, TIMESTAMP_MS // 1000 + self._puts)
        self.index()

    def index(self) -> None:
        if self._is_indexed:
            source = FileReplicaClient(self.folder)
            files = [file for level in range(10) for file in source.list_files(level)]
            store_whole(self.folder / "index.json", write_index(files, TIMESTAMP_MS + self._puts))
            source.close()

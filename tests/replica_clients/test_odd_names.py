"""Replicas whose folders have odd names, on servers that each have their own idea of how these are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from litevfs.replica_clients.urls import open_replica_client
from tests.replica_clients.store_replicas import url_at
from tests.replica_clients.store_servers import WEBDAV_PASSWORD, WEBDAV_USER, nginx, rclone_webdav, sshd, static_server

NAMES = [
    "my app",
    " leading and trailing ",
    "50%",
    "%41",
    "a#b?c",
    "a+b&c=d;e",
    'it\'s "quoted" <b>&amp;',
    "été-日本-😀",
    "e\u0301",
    "x@y:z",
    "..a..",
    "a*[b]$(c)",
    "x" * 200,
    "0",
    "0000",
    "ltx",
    "index.json",
    "a.ltx",
    "/".join(["deep" * 10] * 10),
]
FILE = f"{1:016x}-{1:016x}.ltx"


@contextmanager
def python_server(folder: Path, work: Path) -> Iterator[str]:
    with static_server(folder) as url:
        yield f"{url}/%s"


@contextmanager
def nginx_html(folder: Path, work: Path) -> Iterator[str]:
    with nginx(folder, work) as url:
        yield f"{url}/%s"


@contextmanager
def nginx_json(folder: Path, work: Path) -> Iterator[str]:
    with nginx(folder, work, lines="autoindex_format json;") as url:
        yield f"{url}/%s"


@contextmanager
def webdav(folder: Path, work: Path) -> Iterator[str]:
    os.environ["LITEVFS_WEBDAV_PASSWORD"] = WEBDAV_PASSWORD
    try:
        with rclone_webdav(folder, work) as host:
            yield f"webdav://{WEBDAV_USER}@{host}/%s"
    finally:
        del os.environ["LITEVFS_WEBDAV_PASSWORD"]


@contextmanager
def sftp(folder: Path, work: Path) -> Iterator[str]:
    pytest.importorskip("paramiko", reason="pip install litevfs[sftp]")
    with sshd(work) as (port, keys):
        before, _, after = url_at(port, keys, folder).partition("?")
        yield f"{before.replace('%', '%%')}/%s?{after.replace('%', '%%')}"


@pytest.mark.servers
@pytest.mark.parametrize("server", [python_server, nginx_html, nginx_json, webdav, sftp])
def test_a_replica_is_found_and_read_whatever_its_name(server, tmp_path: Path):
    work, folder = tmp_path / "work", tmp_path / "files"
    work.mkdir()
    for number, name in enumerate(NAMES):
        level = folder / "replicas" / name / "ltx" / "0"
        level.mkdir(parents=True)
        (level / FILE).write_bytes(b"content %d" % number)
    with server(folder, work) as address:
        for number, name in enumerate(NAMES):
            for written in (quote(name), f"/./{quote(name, safe='/')}//", f"x/../{quote(name, safe='/+&=;@:$')}"):
                client = open_replica_client(address % f"replicas/{written}")
                try:
                    (file,) = client.list_files(0)
                    assert client.read(file) == b"content %d" % number
                finally:
                    client.close()

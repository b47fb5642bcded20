"""Packages of others that add a scheme by an entry point, installed as pip does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from litevfs.errors import ReplicaURLError
from litevfs.replica_clients import urls
from litevfs.replica_clients.file import FileReplicaClient

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"

MODULE = """
from litevfs.replica_clients.file import FileReplicaClient


def client(url, *, read_timeout_s):
    return FileReplicaClient("/" + url.partition("://")[2])
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the package `shelf`, for this process and those it starts."""
    info = tmp_path / "litevfs_shelf-1.0.dist-info"
    info.mkdir()
    (tmp_path / "litevfs_shelf.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: litevfs-shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[litevfs.replica_clients]\nshelf = litevfs_shelf:client\nbroken = litevfs_shelf.missing:client\n"
    )
    (info / "RECORD").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(urls, "_factories", dict(urls._factories))
    return tmp_path


def test_a_package_adds_a_scheme(site: Path):
    client = urls.open_replica_client(f"SHELF://{str(ORDERS)[1:]}")
    assert isinstance(client, FileReplicaClient)
    assert len(client.list_files(0)) == 12
    client.close()


def test_a_package_adds_a_scheme_to_the_command(site: Path):
    command = [sys.executable, "-m", "litevfs", "query", f"shelf://{str(ORDERS)[1:]}", "SELECT count(*) FROM orders"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "2667" in done.stdout


def test_a_package_that_cannot_be_imported_is_named(site: Path):
    with pytest.raises(ReplicaURLError, match=r"litevfs-shelf offers broken:// and cannot be imported.*missing"):
        urls.open_replica_client("broken://x")


def test_schemes_of_packages_are_among_those_that_are_offered(site: Path):
    with pytest.raises(ReplicaURLError, match="did you mean shelf://"):
        urls.open_replica_client("shelv://x")


def test_no_package_takes_the_place_of_a_scheme_of_ours(site: Path):
    with (site / "litevfs_shelf-1.0.dist-info" / "entry_points.txt").open("a") as entries:
        entries.write("file = litevfs_shelf.missing:client\n")
    client = urls.open_replica_client(f"file://{ORDERS}")
    assert client.url == f"file://{ORDERS}"
    client.close()

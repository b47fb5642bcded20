"""What an error about an empty replica names near it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

import litevfs
from litevfs.cli import main
from litevfs.errors import StoragePermissionError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.nearby import replicas_near
from tests.support import connected, one

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"
PLACES = ("srv/app2", "srv/orders", "srv/deep/er", "other/orders")


class Folders(FileReplicaClient):
    """A client of a folder that counts listings, some of them forbidden."""

    forbidden = ""

    def __init__(self, root: object) -> None:
        super().__init__(str(root))
        self.listed: list[str] = []

    def list_folders(self, path: str) -> list[str]:
        self.listed.append(path)
        if self.forbidden and path.endswith(self.forbidden):
            raise StoragePermissionError("refused", key=path)
        return super().list_folders(path)


@pytest.fixture
def root(tmp_path):
    for place in PLACES:
        (tmp_path / place / "ltx" / "0").mkdir(parents=True)
    (tmp_path / "srv" / "notes").mkdir()
    for own in (".app.db-litestream", ".app-litevfs"):  # a replicator's, beside a database
        (tmp_path / "srv" / own / "ltx" / "0").mkdir(parents=True)
    (tmp_path / "copied" / "s3" / "0000").mkdir(parents=True)
    (tmp_path / "old" / "one" / "generations").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("srv/app", ["srv/app2", "srv/orders"]),
        ("srv/Orders", ["srv/orders", "srv/app2"]),
        ("srv", ["srv/app2", "srv/orders"]),
        ("srv/deep", ["srv/deep/er"]),
        ("srv/orders/ltx", ["srv/orders"]),
        ("srv/orders/ltx/0", ["srv/orders"]),
        ("copied/s3/0000", ["copied/s3"]),
        ("copied/s4", ["copied/s3"]),
        ("srw/orders", ["srv/orders", "other/orders"]),
        ("old/two", []),
        ("srv/x/y/z", []),
    ],
)
def test_replicas_are_found_around_below_and_beside_a_path(root, path, near):
    assert replicas_near(FileReplicaClient(root / path)) == [str(root / place) for place in near]


def test_few_folders_are_looked_into_and_few_are_named(root):
    for number in range(100):
        (root / "many" / f"app{number}" / "ltx").mkdir(parents=True)
    client = Folders(root / "many" / "app")
    assert len(replicas_near(client)) == 3
    assert len(client.listed) <= 9


def test_what_may_not_be_listed_is_left_out(root):
    client = Folders(root / "srv" / "app")
    client.forbidden = "app2"
    assert replicas_near(client) == [str(root / "srv" / "orders")]
    client.forbidden = "srv"
    assert replicas_near(client) == []


def test_the_error_about_a_mistyped_path_names_what_is_near(root, caplog):
    with pytest.raises(litevfs.ReplicaFolderNotFoundError) as caught:
        litevfs.connect(root / "srv" / "app", open_timeout="100ms")
    assert str(caught.value.hint).startswith(
        f"there is a replica at {root}/srv/app2, {root}/srv/orders; check the path"
    )
    assert caplog.messages == []  # the error comes soon enough


def test_a_long_wait_begins_with_a_warning_and_goes_on(root):
    said: list[str] = []

    class Primary(logging.Handler):
        """Replicates once the reader says that it waits."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                said.append(record.getMessage())
                shutil.copytree(ORDERS, root / "srv" / "app")

    logger, primary = logging.getLogger("litevfs"), Primary()
    logger.addHandler(primary)
    try:
        with connected(root / "srv" / "app", open_timeout="1h") as connection:
            assert one(connection, "SELECT count(*) FROM orders") == 2667
    finally:
        logger.removeHandler(primary)
    (warning,) = said
    assert "nothing to read yet (no such replica folder); waiting for up to 3600 s (open_timeout)" in warning
    assert f"there is a replica at {root}/srv/app2" in warning


def test_a_command_that_does_not_wait_names_what_is_near_too(root, capsys):
    assert main(["ls", str(root / "srv" / "app")]) == 1
    assert f"there is a replica at {root}/srv/app2, {root}/srv/orders" in capsys.readouterr().err

"""Where the files of a level lie below a replica's root: the two layouts that Litestream 0.5 has, and its older one.

Source: Litestream 0.5. S3 has `<level as 4 hex digits>/`, every other storage `ltx/<level in decimal>/`. A replica
that another program copied from one storage to another has the layout of the first. Pure; does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from litevfs.errors import ReplicaError
from litevfs.ltx.names import parse_file_name
from litevfs.replica_clients.base import LEVELS, LTXFileInfo

GENERATIONS = "generations"
"""The folder in which Litestream 0.3 keeps all its files."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout of the levels."""

    name: str
    folder: Callable[[int], str]  # a level's, below the root, with a slash at its end
    end: str  # sorts after everything in the folders of levels

    def level_of(self, path: str) -> int | None:
        """The level of an LTX file at `path` below the root, None for any other path."""
        folder, _, name = path.rpartition("/")
        if parse_file_name(name) is None:
            return None
        return next((level for level in LEVELS if self.folder(level) == f"{folder}/"), None)


HEX = Layout("0000/", lambda level: f"{level:04x}/", "000a/")
"""The layout of S3."""
LTX_FOLDER = Layout("ltx/0/", lambda level: f"ltx/{level}/", "ltx/:")
"""The layout of every other storage."""


def layout_of(paths: Iterable[str], usual: Layout, where: str) -> Layout | None:
    """The layout that the files at `paths` (below the root) lie in, None if there is no LTX file among them.

    Files in the `usual` layout count first. Raises ReplicaError when there are only those of Litestream 0.3.
    """
    paths = list(paths)
    other = LTX_FOLDER if usual is HEX else HEX
    for layout in (usual, other):
        if any(layout.level_of(path) is not None for path in paths):
            return layout
    if any(path.startswith(f"{GENERATIONS}/") for path in paths):
        raise old_replica(where)
    return None


def layout_of_folders(names: Collection[str], usual: Layout, where: str) -> Layout | None:
    """As `layout_of`, by the names in the root; empty folders of levels count too."""
    other = LTX_FOLDER if usual is HEX else HEX
    for layout in (usual, other):
        if any(layout.folder(level).partition("/")[0] in names for level in LEVELS):
            return layout
    if GENERATIONS in names:
        raise old_replica(where)
    return None


class OldReplicaCheck:
    """Refuses a replica of Litestream 0.3, where no LTX file is found. `look` says whether there is its folder.

    It is called once, and not at all after a listing with files.
    """

    def __init__(self, where: str, look: Callable[[], bool]) -> None:
        self._where, self._look = where, look
        self._is_due = True

    def check(self, files: Collection[LTXFileInfo]) -> None:
        """Note what a listing found. Raises ReplicaError about an old replica, and what `look` raises."""
        if self._is_due and not files and self._look():
            raise old_replica(self._where)
        self._is_due = False


def old_replica(where: str) -> ReplicaError:
    """The error about a replica of Litestream 0.3."""
    return ReplicaError(
        "a replica of Litestream 0.3 (it has a folder generations/), which holds no LTX files",
        key=where,
        hint="restore it with Litestream 0.3, or replicate the database with Litestream 0.5 to an empty place",
    )

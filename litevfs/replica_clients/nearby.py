"""Names the replicas near a path that holds none, for the error about it. Lists names only, and few of them."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice

from litevfs.errors import LitevfsError, ReplicaError
from litevfs.replica_clients.base import LEVELS, ListsFolders, ReplicaClient
from litevfs.replica_clients.layouts import HEX, LTX_FOLDER, layout_of_folders

_MOST_LOOKED_AT = 6
"""Folders that are looked into, each by one listing."""
_MOST_NAMED = 3
_FOLDERS_OF_LEVELS = {"ltx", *(HEX.folder(level)[:-1] for level in LEVELS)}
_OF_A_REPLICATOR = re.compile(r"\..+-(litestream|litevfs)", re.DOTALL)
"""Folders beside a database, in which a replicator keeps files: laid out like a replica, and never a whole one."""
_DECIMAL = re.compile(r"\d", re.ASCII)


def replicas_near(client: ReplicaClient) -> list[str]:
    """Where there are replicas near that of `client`, which holds none, as its storage names them; none if in doubt.

    Looks at the folders that the path lies in, at those below it, and at those beside it, alike names first. Makes up
    to nine listings.
    """
    if not isinstance(client, ListsFolders):
        return []
    with suppress(LitevfsError, OSError):
        return [client.place_of(path) for path in _near(client.list_folders, client.path)]
    return []


def hint_of(places: Iterable[str]) -> str:
    """The words for what `replicas_near` has found, "" for nothing."""
    named = ", ".join(places)
    return f"there is a replica at {named}" if named else ""


def _near(list_folders: Callable[[str], list[str]], path: str) -> list[str]:
    def is_replica(folder: str) -> bool:
        if _OF_A_REPLICATOR.fullmatch(posixpath.basename(folder)):
            return False
        with suppress(LitevfsError, OSError):
            names = list_folders(folder)
            with suppress(ReplicaError):  # of an old Litestream
                return layout_of_folders(names, LTX_FOLDER, folder) is not None
        return False

    for candidates in (_around(path), _below(list_folders, path), _beside(list_folders, path)):
        found = islice(filter(is_replica, islice(candidates, _MOST_LOOKED_AT)), _MOST_NAMED)
        if near := list(found):
            return near
    return []


def _around(path: str) -> Iterator[str]:
    """The folder that is a replica if `path` is one of its levels, or the folder of all."""
    parent, name = posixpath.split(path)
    if name in _FOLDERS_OF_LEVELS:
        yield parent
    if _DECIMAL.fullmatch(name) and posixpath.basename(parent) == "ltx":
        yield posixpath.dirname(parent)


def _below(list_folders: Callable[[str], list[str]], path: str) -> Iterator[str]:
    for name in sorted(list_folders(path)):
        yield posixpath.join(path, name)


def _beside(list_folders: Callable[[str], list[str]], path: str) -> Iterator[str]:
    """Folders in the same place by other names; where that place is missing, in one with a name like its own."""
    parent, name = posixpath.split(path)
    names = list_folders(parent) if path else []
    yield from (posixpath.join(parent, other) for other in _by_likeness(name, names))
    if not names and parent:
        above, missing = posixpath.split(parent)
        for other in _by_likeness(missing, list_folders(above)):
            yield posixpath.join(above, other, name)


def _by_likeness(name: str, others: Iterable[str]) -> list[str]:
    """The other names, the likest first."""

    def likeness(other: str) -> tuple[bool, float]:
        folded, wanted = other.lower(), name.lower()
        starts_alike = folded.startswith(wanted) or wanted.startswith(folded)
        return starts_alike, difflib.SequenceMatcher(None, folded, wanted).ratio()

    return sorted((other for other in others if other != name), key=likeness, reverse=True)

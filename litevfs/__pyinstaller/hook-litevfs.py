"""What PyInstaller cannot see in litevfs: modules that are imported by name when they are needed, and entry points."""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_submodules, copy_metadata

_FOR_TESTS = ("litevfs.__pyinstaller", "litevfs.testing")
_BY_NAME = tuple(f"litevfs.integrations.{name}" for name in ("arrow", "partitions", "sqlalchemy"))
"""An application imports the other integrations itself; each would bring the engine that it is for."""


def _is_needed(name: str) -> bool:
    if name.startswith("litevfs.integrations."):
        return name.startswith(_BY_NAME)
    return not name.startswith(_FOR_TESTS)


hiddenimports = collect_submodules("litevfs", filter=_is_needed)
datas = copy_metadata("litevfs")

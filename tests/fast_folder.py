"""Where tests keep their files: in memory where the system can, since a disk takes a millisecond for each fsync.

Thousands of commits are most of what the tests of the primary wait for, and no test can tell what a disk would have
lost. `PYTEST_DEBUG_TEMPROOT=/tmp make test` keeps them on a disk.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_MEMORY_FILE_SYSTEM = Path("/dev/shm")
_ROOM_BYTES = 1 << 30


def fast_folder() -> str | None:
    """Where the system keeps files in memory, if it does and there is room; None: where it keeps temporary files."""
    try:
        has_room = shutil.disk_usage(_MEMORY_FILE_SYSTEM).free > _ROOM_BYTES
    except OSError:
        return None
    return str(_MEMORY_FILE_SYSTEM) if has_room and os.access(_MEMORY_FILE_SYSTEM, os.W_OK) else None


def use_fast_folder() -> None:
    """Let `tmp_path` and the like lie there, in this process and in those that pytest starts for tests."""
    folder = fast_folder()
    if folder is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)

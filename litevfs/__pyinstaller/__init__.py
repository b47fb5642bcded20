"""What PyInstaller asks litevfs for, by the entry point `pyinstaller40`: where its hooks are."""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """The folder with `hook-litevfs.py`."""
    return [str(Path(__file__).parent)]

"""The commands of `litevfs`, one module each: name and help, arguments, and `run`, which returns the exit code."""

from __future__ import annotations

import argparse
from typing import Protocol

from litevfs.commands import (
    compact,
    copy,
    demo,
    diff,
    doctor,
    dump,
    explain_io,
    follow,
    history,
    ls,
    query,
    replicate,
    restore,
    shell,
    status,
    verify,
    watch,
)


class Command(Protocol):
    """The interface of a module of this package."""

    NAME: str
    HELP: str  # half a line, for the list of commands
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments and flags."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; returns 0, or 1 for a problem found. Raises LitevfsError and apsw.Error."""
        ...


COMMANDS: tuple[Command, ...] = (
    query,
    shell,
    status,
    history,
    ls,
    dump,
    explain_io,
    verify,
    restore,
    follow,
    diff,
    watch,
    copy,
    doctor,
    replicate,
    compact,
    demo,
)
"""In the order of the help."""

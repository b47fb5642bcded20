"""The commands of `litevfs`, one module each: description, arguments, and `run`, which returns the exit code."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Protocol, cast

COMMANDS = {
    "query": "run SQL and print the rows",
    "shell": "query a replica interactively",
    "status": "say where a replica stands",
    "history": "list the states to go back to",
    "ls": "list the LTX files",
    "dump": "show what one LTX file holds",
    "explain-io": "the requests of a query, and why each was made",
    "verify": "check every file, the chain and the database",
    "restore": "make a database file of a state",
    "follow": "keep a local database file current",
    "diff": "the rows that differ between two states",
    "watch": "print row changes as they come",
    "copy": "copy a replica to another storage",
    "doctor": "try what a reader and a primary need of a storage",
    "replicate": "replicate a live database",
    "compact": "compact levels, take a snapshot, delete old files",
    "demo": "see it work: a database, its replica and a live reader",
}
"""Half a line on each, in the order of the help."""


class Command(Protocol):
    """The interface of a module of this package."""

    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments and flags."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; returns 0, or 1 for a problem found. Raises LitevfsError and apsw.Error."""
        ...


def load(name: str) -> Command:
    """Import the module of a command: most load what no other one needs."""
    return cast("Command", import_module(f"{__name__}.{name.replace('-', '_')}"))

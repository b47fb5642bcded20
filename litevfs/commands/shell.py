"""`litevfs shell`: APSW's shell, which is much like sqlite3's, on a replica."""

from __future__ import annotations

import argparse
import logging
import sys

import apsw
import apsw.shell

from litevfs.bindings.apsw_connections import add_hint
from litevfs.commands.options import add_options, add_url, connect

logger = logging.getLogger("litevfs.shell")

DESCRIPTION = (
    "An interactive SQL shell on a replica, much like sqlite3's: .help lists its commands. Each statement sees the "
    "newest transactions unless BEGIN holds one state. Statements may also come through a pipe; the first error then "
    "ends it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    add_url(parser)
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    connection = connect(args)
    shell = _Shell(db=connection)
    try:
        shell.prompt, shell.moreprompt = "litevfs> ", "    ...> "
        shell.bail = not shell.interactive
        shell.cmdloop(_intro(connection))  # type: ignore[no-untyped-call]
    except BrokenPipeError:  # the reader of the output went away
        raise
    except Exception as error:
        if shell.interactive and isinstance(error, OSError):  # an interactive shell reports errors of statements itself
            logger.warning("the history of this session was not saved: %s", error)
            return 0
        if not getattr(error, "_handle_exception_saw_this", False):
            raise
        return 1  # the shell has printed the error
    finally:
        connection.close()
    sys.stdout.flush()
    return 0


class _Shell(apsw.shell.Shell):
    def handle_exception(self) -> None:
        """Print the error that is handled now, as APSW does, and what to do."""
        error = sys.exception()
        if isinstance(error, BrokenPipeError):
            raise error
        if isinstance(error, apsw.Error):
            add_hint(error)
        super().handle_exception()  # type: ignore[no-untyped-call]


def _intro(connection: apsw.Connection) -> str:
    txid, moment = connection.pragma("litestream_txid"), connection.pragma("litestream_time")
    return (
        f"At TXID {txid}, {moment}; SQLite {apsw.sqlite_lib_version()}, read-only.\n"
        "PRAGMA litestream_time = '5 minutes ago' goes back, 'latest' follows again. .help lists more, .exit leaves.\n"
    )

"""The `litevfs` command: its parser, and its exit code. The commands are in `litevfs.commands`.

Results go to stdout and everything else to stderr. Exit codes: 0 done, 1 failed or found a problem, 2 used wrongly,
130 ended by Ctrl-C, 141 when the reader of the output went away. A user's mistake is reported in one line, not by a
traceback.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

import apsw

import litevfs
from litevfs.commands import COMMANDS, load
from litevfs.errors import (
    HINT_FULL,
    HINT_READ_ONLY,
    LitevfsError,
    OptionError,
    ReplicaEmptyError,
    ReplicaFolderNotFoundError,
    shown,
)

OK, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 128 + 2, 128 + 13
"""Exit codes; the last two are what a shell reports for SIGINT and SIGPIPE."""
_UNKNOWN_COMMAND = re.compile("argument COMMAND: invalid choice: '([^']*)'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (default: that of `sys.argv`); returns the exit code."""
    _reopen_closed_streams()
    _never_fail_to_encode(sys.stdout, sys.stderr)
    try:
        try:
            args = build_parser().parse_args(arguments)
        finally:
            sys.stdout.flush()  # the output of --help
        with _log_to_stderr(debug=_is_debugging(args)):
            return _run(args)
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.run(args)` of what it returns runs the command."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="log everything, show tracebacks (to stderr)"
    )
    parser = _Parser(
        prog="litevfs",
        description="Query a Litestream replica of a SQLite database in place, live.",
        epilog="URL is where the replica is: file:///path, s3://bucket/path. 'litevfs COMMAND --help' says more.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"litevfs {litevfs.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, help_ in COMMANDS.items():
        commands.add_parser(name, help=help_, parents=[common], allow_abbrev=False).command = name
    return parser


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line; argparse's own parser prints every flag first."""

    command = ""  # whose module is imported, and tells the arguments, when they are parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse unknown arguments here: argparse would leave that to the parser of the whole command line."""
        if self.command:
            command, self.command = load(self.command), ""
            self.description = command.DESCRIPTION
            command.add_arguments(self)
            self.set_defaults(run=command.run)
        self._given = [text for text in args or () if isinstance(text, str)]
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._nearest(unknown[0])}{self._quotes(unknown)}")
        return namespace, unknown

    def _nearest(self, unknown: str) -> str:
        near = difflib.get_close_matches(unknown.partition("=")[0], self._option_string_actions, n=1, cutoff=0.7)
        return f"; hint: did you mean {near[0]}?" if near and unknown.startswith("--") else ""

    def _quotes(self, unknown: list[str]) -> str:
        takes_sql = any(action.dest == "sql" for action in self._actions)
        return "; hint: put all of the SQL into quotes" if takes_sql and not unknown[0].startswith("-") else ""

    def _greedy(self) -> str:
        """A hint, if a flag that takes all that follows may have taken an argument that is missing."""
        for action in self._actions:
            for flag in action.option_strings:
                if action.nargs == "+" and flag in self._given:
                    return f"; hint: {flag} takes all that follows: put other arguments before it"
        return ""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        if unknown := _UNKNOWN_COMMAND.match(message):
            near = difflib.get_close_matches(unknown[1], COMMANDS, n=1) if unknown[1] != "help" else []
            message += f"; hint: did you mean {near[0]}?" if near else ""
        if message.startswith("the following arguments are required"):
            message += self._greedy()
        hint = "" if "; hint: " in message else f"; hint: {self.prog} --help"
        self.exit(USAGE, f"litevfs: error: {message}{hint}\n")


def _run(args: argparse.Namespace) -> int:
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except (LitevfsError, apsw.Error, OSError, UnicodeError) as error:
        if _is_debugging(args):
            raise
        _flush_or_discard()
        print(f"litevfs: error: {_one_line(error)}{_near_hint(args, error)}", file=sys.stderr)
        return USAGE if isinstance(error, OptionError | UnicodeEncodeError) else FAILED
    return code


def _near_hint(args: argparse.Namespace, error: Exception) -> str:
    if not isinstance(error, ReplicaEmptyError | ReplicaFolderNotFoundError) or not hasattr(args, "url"):
        return ""
    from litevfs.commands.options import near_hint  # a command has imported it

    return near_hint(args, error)


def _is_debugging(args: argparse.Namespace) -> bool:
    # The flag has no default: the command's default would replace a value given before the command.
    return getattr(args, "debug", False)


def _one_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"a value of type text is not UTF-8 ({error}); hint: select it with cast(... AS blob)"
    if isinstance(error, UnicodeEncodeError):
        return f"not text in UTF-8: {shown(error.object)}; hint: SQLite takes no other text"
    text = str(error)
    for kind, hint in ((apsw.ReadOnlyError, HINT_READ_ONLY), (apsw.FullError, HINT_FULL)):
        if isinstance(error, kind) and hint not in text:  # it came with a later row
            text += f"; hint: {hint}"
    if isinstance(error, OSError) and not isinstance(error, LitevfsError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(text.splitlines()) or type(error).__name__


def _reopen_closed_streams() -> None:
    """Open closed standard streams (`>&-`) on the null device, so that no other file gets their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))


def _never_fail_to_encode(*streams: TextIO) -> None:
    for stream in streams:
        with suppress(AttributeError):  # not the real stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]  # of a text file


def _flush_or_discard() -> None:
    try:
        sys.stdout.flush()
    except OSError:  # the disk is full, say; that is the error being reported
        _discard_output()


def _discard_output() -> None:
    """Drop the buffered output, which cannot be written: keep the interpreter from writing it at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):  # not the real stream
        os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


@contextmanager
def _log_to_stderr(*, debug: bool) -> Iterator[None]:
    logger = logging.getLogger("litevfs")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("litevfs: %(levelname)s: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    if debug:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record)

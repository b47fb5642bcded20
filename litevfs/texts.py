"""What users give as text: paths, replica URLs, rates, queries, names. One parser of each; units are in `units`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from litevfs.errors import OptionError, ReplicaURLError, shown


def parse_text(value: object) -> str:
    """A text, or a path as text. Raises OptionError for what no URI for SQLite can hold."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise OptionError(f"not text: {shown(value)}")
    if "\0" in text or not _is_unicode(text):
        raise OptionError(f"not text in UTF-8 without NUL: {shown(value)}", hint="SQLite takes no other text")
    return text


def expand_home(path: str) -> Path:
    """The path, with the user's home folder for `~`. Without a home it stays as it is, and names no file.

    Where a container runs as a user ID that `/etc/passwd` lacks, without HOME, `Path.expanduser` raises RuntimeError.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def parse_replica_url(value: object) -> str:
    """The text of a replica URL, or of a path. Raises ReplicaURLError."""
    example = "for example s3://bucket/path, or the path of a folder"
    try:
        text = parse_text(value)
    except OptionError as error:
        raise ReplicaURLError(f"no replica URL: {error.message}", hint=example) from None
    if not text:
        raise ReplicaURLError("an empty text in the place of a replica URL", hint=f"is its variable set? {example}")
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_rate(value: object) -> float:
    """A number above 0. Raises OptionError."""
    try:
        rate = float(str(value))
    except ValueError:  # of an int of more than 4,300 digits, too
        rate = math.nan
    if isinstance(value, bool) or not 0 < rate < math.inf:
        raise OptionError(f"not a number above 0: {shown(value)}", hint="for example 100 requests a second, or 0.5")
    return rate


def parse_queries(value: object) -> str:
    """SQL queries, with semicolons between them: a text, or several texts. Raises OptionError."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise OptionError(f"not SQL: {shown(value)}", hint="a text, or a list of texts")
    text = parse_text("\n;".join(texts))  # a query may end with a comment
    return text if text.strip("; \n") else ""


def names_of(names: object, what: str) -> list[str]:
    """Names of tables or columns, given as a collection. Raises OptionError for a single text: it has letters only."""
    texts = list(names) if isinstance(names, Iterable) and not isinstance(names, str | bytes) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise OptionError(f"not a list of names: {what}={shown(names)}", hint=f'for example {what}=["a", "b"]')
    return texts


def check_vfs_name(name: object) -> None:
    """Raise OptionError for what cannot be the name of a VFS."""
    if not isinstance(name, str) or not name or "\0" in name or not _is_unicode(name):
        raise OptionError(f"not a name for a VFS: {shown(name)}", hint='for example "litestream"')

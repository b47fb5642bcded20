"""A YAML file as sections that know their lines. Knows YAML and lines; does not know what any key means.

Needs PyYAML (the extra `config`). Environment variables are replaced as Litestream does it, before the text is read as
YAML: `$NAME` and `${NAME}`, by nothing where there is no such variable.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from litevfs.errors import OptionError
from litevfs.units import parse_bool, parse_duration_s

try:
    import yaml
except ImportError as _error:
    raise OptionError("--config needs PyYAML", hint="pip install 'litevfs[config]'") from _error

T = TypeVar("T")

_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*)|([*#$@!?0-9-]))", re.ASCII)  # Go's os.Expand


class Document:
    """Collects the mistakes and warnings about one file."""

    def __init__(self, path: Path, *, expand: bool) -> None:
        self.path = path
        self.mistakes: list[str] = []
        self.warnings: list[str] = []
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            raise OptionError(f"cannot read {path}: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise OptionError(f"{path} is not UTF-8") from exc
        self._text = self._expanded(text) if expand else text

    def root(self) -> Section:
        """The whole file. Raises OptionError where it is no YAML, or no table of keys."""
        try:
            node = yaml.compose(self._text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as exc:
            line = exc.problem_mark.line + 1 if exc.problem_mark else 1
            raise OptionError(f"{self.path}:{line}: this is not YAML: {exc.problem or exc}") from exc
        except yaml.YAMLError as exc:
            raise OptionError(f"{self.path}: this is not YAML: {exc}") from exc
        if node is None:
            raise OptionError(f"{self.path} is empty", hint="it needs a list dbs:")
        return Section(self, node, "")

    def mistake(self, line: int, key: str, what: str) -> None:
        """Note a mistake, for `finish`."""
        self.mistakes.append(f"{self.path}:{line}: {key}: {what}")

    def warn(self, line: int, key: str, what: str) -> None:
        """Note what is not done as the file says."""
        self.warnings.append(f"{self.path}:{line}: {key}: {what}")

    def finish(self) -> None:
        """Raise OptionError if there are mistakes: all of them, in the order of their lines."""
        if self.mistakes:
            raise OptionError("; ".join(sorted(self.mistakes, key=_line_of)))

    def _expanded(self, text: str) -> str:
        lines = []
        for number, line in enumerate(text.splitlines(keepends=True), start=1):

            def value(match: re.Match[str], number: int = number, line: str = line) -> str:
                name = match[1] or match[2] or match[3] or ""
                found = str(os.getpid()) if name == "PID" else os.environ.get(name)
                if found is None and not line.lstrip().startswith("#"):
                    self.warn(number, match[0], "there is no such environment variable, so nothing takes its place")
                return found or ""

            lines.append(_VARIABLE.sub(value, line))
        return "".join(lines)


class Section:
    """A table of keys in the file. Each key is asked for once; `refuse_rest` names those that no code asked for."""

    def __init__(self, document: Document, node: yaml.Node, name: str) -> None:
        self.document, self.name = document, name
        self.line: int = node.start_mark.line + 1
        self._values: dict[str, yaml.Node] = {}
        self._lines: dict[str, int] = {}
        self._asked: list[str] = []
        if not isinstance(node, yaml.MappingNode):
            document.mistake(self.line, name or "the file", "not a table of keys")
            return
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if str(key.value) in seen and key.value != "<<":
                document.mistake(
                    key.start_mark.line + 1, self._full(key.value), f"given twice, first in line {seen[key.value]}"
                )
            seen[str(key.value)] = key.start_mark.line + 1
        yaml.constructor.SafeConstructor().flatten_mapping(node)  # merges what `<<: *anchor` names
        for key, value in node.value:
            self._values[str(key.value)] = value
            self._lines[str(key.value)] = key.start_mark.line + 1

    def __contains__(self, key: str) -> bool:
        return key in self._values and not _is_null(self._values[key])

    def line_of(self, key: str) -> int:
        """The line of a key, that of the section if it is not there."""
        return self._lines.get(key, self.line)

    def text(self, key: str) -> str | None:
        """The key's text; None if it is not there, or empty."""
        return self._parsed(key, lambda text: text) or None

    def duration_s(self, key: str, *, allow_zero: bool = False) -> float | None:
        """A duration with a unit, in seconds."""

        def parse(text: str) -> float:
            if re.fullmatch(r"[0-9.]+", text) and float(text) != 0:
                raise OptionError(f"a duration without a unit: {text}", hint="for example 30s")
            seconds = parse_duration_s(text)
            if seconds < 0 or (seconds == 0 and not allow_zero):
                raise OptionError(f"not longer than nothing: {text}")
            return seconds

        return self._parsed(key, parse)

    def boolean(self, key: str) -> bool | None:
        """True or False."""
        return self._parsed(key, parse_bool)

    def number(self, key: str) -> int | None:
        """A whole number of 0 or more."""

        def parse(text: str) -> int:
            if not text.isdecimal():
                raise OptionError(f"not a number: {text!r}")
            return int(text)

        return self._parsed(key, parse)

    def section(self, key: str) -> Section | None:
        """The table below the key."""
        self._asked.append(key)
        return Section(self.document, self._values[key], self._full(key)) if key in self else None

    def sections(self, key: str) -> list[Section]:
        """The tables in the list below the key."""
        self._asked.append(key)
        if key not in self:
            return []
        node = self._values[key]
        if not isinstance(node, yaml.SequenceNode):
            self.mistake(key, "not a list")
            return []
        return [Section(self.document, item, f"{self._full(key)}[{n}]") for n, item in enumerate(node.value)]

    def mistake(self, key: str, what: str) -> None:
        """Note a mistake in the value of the key."""
        self.document.mistake(self.line_of(key), self._full(key), what)

    def warn(self, key: str, what: str) -> None:
        """Note, if the key is there, that it is not done, or not so."""
        self._asked.append(key)
        if key in self:
            self.document.warn(self.line_of(key), self._full(key), what)

    def refuse_rest(self) -> None:
        """A mistake for each key that was not asked for, with the nearest right name."""
        for key in self._values:
            if key not in self._asked:
                near = difflib.get_close_matches(key.lower().replace("_", "-"), self._asked, n=1)
                self.mistake(key, "no such key" + (f"; did you mean {near[0]}?" if near else ""))

    def _parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        self._asked.append(key)
        if key not in self:
            return None
        node = self._values[key]
        if not isinstance(node, yaml.ScalarNode):
            self.mistake(key, "not a single value")
            return None
        try:
            return parse(str(node.value))
        except OptionError as exc:
            self.mistake(key, str(exc))
            return None

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else str(key)


def each(sections: Iterable[Section]) -> Iterator[Section]:
    """The sections, each checked for keys that were not asked for after its use."""
    for section in sections:
        yield section
        section.refuse_rest()


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _line_of(mistake: str) -> int:
    match = re.search(r":(\d+): ", mistake)
    return int(match[1]) if match else 0

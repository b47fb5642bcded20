"""Runs the examples of README.md and of docs/. docs/development.md says how they are marked."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
REPLICA = ROOT / "tests" / "fixtures" / "orders" / "replica"
SHOWN_URL = "file:///srv/orders"
"""Where the examples say that their replica is."""
TIME_LIMIT_S = 60

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"run|run with (?P<packages>[\w.]+(?:, [\w.]+)*)|output|not run: .+")
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    line: int  # in the file, 1-based
    mark: str  # the comment before it, or ""
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """One command to run, and its output if the text shows one."""

    line: int
    command: list[str]
    expected: str | None


def find_blocks(markdown: str) -> list[Block]:
    return [
        Block(markdown.count("\n", 0, match.start()) + 1, match["mark"] or "", match["language"], match["text"])
        for match in _BLOCK.finditer(markdown)
    ]


def find_examples(markdown: str) -> Iterator[Example]:
    """The commands of all blocks marked `run`, in the order of the text."""
    blocks = find_blocks(markdown)
    for block, following in zip(blocks, [*blocks[1:], None], strict=False):  # the last one has none
        if not _is_run(block.mark):
            continue
        if block.language == "python":
            expected = following.text if following and following.mark == "output" else None
            yield Example(block.line, [sys.executable, "-c", block.text], expected)
        else:
            yield from split_session(block)


def _is_run(mark: str) -> bool:
    """Whether the block is an example, and the packages that it names are here."""
    found = _MARK.fullmatch(mark)
    if found is None or not mark.startswith("run"):
        return False
    return all(find_spec(package) for package in (found["packages"] or "").split(", ") if package)


def split_session(block: Block) -> Iterator[Example]:
    """The commands of a console block: each `$ ` line with its continuations, and the lines up to the next."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        length = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\\n"))
        command, output = "".join(lines[:length]), "".join(lines[length:])
        yield Example(block.line, ["sh", "-c", command], output)


def same_output(expected: str, actual: str) -> bool:
    """Whether they are equal, where `...` in the expected text stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, actual.strip(), re.DOTALL) is not None


class Workplace:
    """The folder that examples share, with a replica in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(REPLICA, folder / "orders")
        self._url = (folder / "orders").as_uri()
        scripts = str(Path(sys.executable).parent)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("LITESTREAM_", "AWS_"))}
        self._environment = clean | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}

    def run(self, example: Example, page: Path = Path("README.md")) -> None:
        """Run one example as a reader would; fail with the difference between what it shows and what it does."""
        result = subprocess.run(
            [argument.replace(SHOWN_URL, self._url) for argument in example.command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        output = result.stdout.replace(self._url, SHOWN_URL)
        where = f"{page}:{example.line}: {example.command[-1].strip()}"
        if result.returncode:
            pytest.fail(f"{where}\nended with {result.returncode}:\n{output}", pytrace=False)
        if example.expected is not None and not same_output(example.expected, output):
            lines = example.expected.splitlines(), output.splitlines()
            difference = "\n".join(difflib.unified_diff(*lines, "shown", "real", lineterm=""))
            pytest.fail(f"{where}\n{difference}", pytrace=False)


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "doors"], ids=str)
def test_every_door_has_an_example_that_runs(page: Path):
    assert any(block.mark.startswith("run") for block in find_blocks((ROOT / page).read_text()))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_example_says_whether_it_is_run(page: Path):
    blocks = [block for block in find_blocks((ROOT / page).read_text()) if block.language in ("python", "console")]
    assert blocks or page != Path("README.md")
    for block in blocks:
        assert _MARK.fullmatch(block.mark), f"{page}:{block.line}: put <!-- run --> or <!-- not run: why --> before it"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_example_shows_what_it_really_prints(page: Path, workplace: Workplace):
    examples = list(find_examples((ROOT / page).read_text()))
    assert examples or page != Path("README.md")
    for example in examples:
        workplace.run(example, page)


@pytest.mark.parametrize(
    ("markdown", "complaint"),
    [
        ("```console\n$ echo one\ntwo\n```", r"README\.md:1: echo one\n.*-two\n\+one"),
        ("```console\n$ echo one\n```", r"\+one"),
        ("```console\n$ exit 3\n```", "ended with 3"),
        ("```python\nprint(1)\n```\n<!-- output -->\n```\n2\n```", r"-2\n\+1"),
        ("```python\nraise OSError('no')\n```", "ended with 1:\n.*OSError: no"),
        ("```python\nprint('a b d')\n```\n<!-- output -->\n```\na...c\n```", r"-a\.\.\.c\n\+a b d"),
    ],
)
def test_example_that_does_not_hold_fails(workplace: Workplace, markdown: str, complaint: str):
    (example,) = find_examples(f"<!-- run -->\n{markdown}\n")
    with pytest.raises(pytest.fail.Exception, match=f"(?s){complaint}"):
        workplace.run(example)


@pytest.mark.parametrize(
    "markdown",
    [
        "```console\n$ echo one \\\n  two\none two\n$ echo three\nthree\n```",
        "```console\n$ echo one > shared\n```\n<!-- run -->\n```console\n$ cat shared\none\n```",
        "```console\n$ ls orders\nltx\n$ echo file:///srv/orders\nfile:///srv/orders\n```",
        "```python\nfrom pathlib import Path\n"
        "print(len(list(Path('file:///srv/orders'.removeprefix('file://')).glob('ltx/0/*'))))\n```\n"
        "<!-- output -->\n```\n12\n```",
        "```python\nprint('took 12 ms')\n```\n<!-- output -->\n```\ntook ... ms\n```",
        "```python\nprint('output not shown')\n```",
    ],
)
def test_example_that_holds_passes(workplace: Workplace, markdown: str):
    for example in find_examples(f"<!-- run -->\n{markdown}\n"):
        workplace.run(example)


def test_an_example_is_run_with_the_packages_that_it_names():
    markdown = "<!-- run with {} -->\n```console\n$ true\n```\n"
    assert len(list(find_examples(markdown.format("json")))) == 1
    assert list(find_examples(markdown.format("json, no_such_package"))) == []


def test_only_marked_blocks_are_examples():
    markdown = "```console\n$ false\n```\n<!-- not run: why -->\n```console\n$ false\n```\n"
    assert [block.mark for block in find_blocks(markdown)] == ["", "not run: why"]
    assert list(find_examples(markdown)) == []

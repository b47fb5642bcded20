"""Imports point one way only: this enforces the table below. Owns the rules; reads the sources, imports none of them.

    python tools/check_layering.py [package folder]

Counts every import statement, also those inside functions and under TYPE_CHECKING: a type that points upwards is
knowledge too. Prints one line per finding and exits with 1 when there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "litevfs"
PUBLIC = f"{PACKAGE} options status restore copy progress history replicate.* replica_clients.* ltx.*"
"""What commands and test helpers build on."""
S3_CLIENT = "replica_clients.s3 replica_clients.s3_*"

LAYERS = {
    # module, or modules that may import one another  : what they may import besides `errors`
    "errors": "",
    "backoff": "",
    "clock": "",
    "ltx.format ltx.names": "",
    "ltx.checksum ltx.page_index ltx.frame ltx.decoder ltx.encoder ltx.compactor": "ltx.format",
    "ltx": "ltx.*",
    "replica_clients.base": "ltx.names",
    "replica_clients.memory": "replica_clients.base ltx.names",
    "replica_clients.file": "replica_clients.base ltx.names",
    S3_CLIENT: "replica_clients.base bounded ltx.names",
    "replica_clients.urls": "replica_clients.*",
    "replica_clients": "replica_clients.*",
    "options": "ltx.names",
    "plan": "replica_clients.base ltx.names",
    "disk_cache": "replica_clients.base ltx.checksum",
    "write_behind": "disk_cache replica_clients.base",
    "verification": "ltx.*",
    "workers": "",
    "futures": "",
    "fetch": "backoff bounded workers futures write_behind verification replica_clients.base ltx.*",
    "snapshot": "replica_clients.base ltx.*",
    "btree": "",
    "prefetch": "btree",
    "cache blocks readahead": "futures verification snapshot fetch replica_clients.base ltx.*",
    "hydration": "snapshot workers",
    "pages": "hydration cache blocks readahead prefetch snapshot fetch plan replica_clients.base ltx.*",
    "status": "",
    "history": "plan fetch options replica_clients.base ltx.*",
    "lineage": "fetch snapshot replica_clients.base",
    "follower": "lineage history plan fetch snapshot replica_clients.base ltx.*",
    "health": "clock status",
    "bounded": "backoff clock workers",
    "views": "follower snapshot replica_clients.base",
    "poller": "backoff workers fetch",
    "report": "health status pages snapshot fetch disk_cache options ltx.names",
    "replica": "backoff clock bounded health report views follower poller status pages snapshot fetch write_behind "
    "plan options replica_clients.* ltx.*",
    "sharing": "replica status options replica_clients.*",
    "subscription": "sharing replica options workers",
    "pragmas": "replica report status history snapshot options ltx.names",
    "vfs": "sharing pragmas history replica follower poller status pages cache blocks prefetch snapshot fetch plan "
    "options replica_clients.* ltx.*",
    "stream": "backoff futures workers verification fetch replica_clients.* ltx.*",
    "progress": "",
    "restore restore_*": "stream history plan fetch options replica_clients.* ltx.*",
    "copy": "verification stream plan fetch options replica_clients.* ltx.*",
    "replicate.*": "backoff workers stream history plan fetch options replica_clients.* ltx.*",
    f"{PACKAGE} api": "vfs subscription sharing status restore copy replicate.* options replica_clients.* ltx.*",
    "testing.*": PUBLIC,
    "cli commands.* __main__": f"{PUBLIC} plan fetch stream restore_*",
}
"""The design's table, lowest first. `*` is the rest of a name, if any; `litevfs` itself is what users import."""

THIRD_PARTY = {
    # package    : the modules that may import it
    "apsw": f"errors vfs restore replicate.* cli commands.* testing.* {PACKAGE} api",
    "boto3": f"{S3_CLIENT} testing.*",
    "botocore": f"{S3_CLIENT} testing.*",
    "urllib3": f"{S3_CLIENT} testing.*",
    "mypy_boto3_s3": f"{S3_CLIENT} testing.*",
    "fastcrc": "ltx.checksum testing.*",
    "lz4": "ltx.frame ltx.decoder ltx.encoder testing.*",
    "numpy": "ltx.* verification fetch snapshot hydration btree cache blocks pages replicate.* testing.*",
    "*": "testing.*",
}
"""Packages beyond the standard library. `*` is any other."""

VFS_MODULES = ("vfs", "replicate.database")  # the second has the source's file synced through SQLite's own VFS
VFS_NAME = re.compile(r"x[A-Z]\w*")
"""SQLite's names of VFS methods, as APSW has them (xRead); they appear in one module alone."""


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: `name` is dotted, without the package ("ltx.format"; "litevfs" is the package itself)."""

    name: str
    path: Path
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module: `target` is a name as in `Module` when `own`, else a top-level package."""

    line: int
    target: str
    own: bool


def main(arguments: list[str]) -> int:
    """Check the package in the given folder, or this repository's."""
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1] / PACKAGE
    modules = list(read_modules(folder))
    findings = list(check(modules))
    print(*findings, f"layering: {len(modules)} modules, {len(findings)} findings", sep="\n")
    return 1 if findings else 0


def read_modules(folder: Path) -> Iterator[Module]:
    """The sources below `folder`."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or PACKAGE
        yield Module(name, path, ast.parse(path.read_bytes(), str(path)))


def check(modules: Iterable[Module]) -> Iterator[str]:
    """One line for everything that the tables do not allow."""
    by_name = {module.name: module for module in modules}
    graph: dict[str, set[str]] = {}
    for module in by_name.values():
        layer = find_layer(module.name)
        if layer is None:
            yield f"{module.path}:1: {module.name} has no layer: add it to the table in tools/check_layering.py"
            continue
        imports = list(find_imports(module, by_name))
        yield from check_imports(module, layer, imports)
        yield from check_vfs_names(module)
        graph[module.name] = {one.target for one in imports if one.own}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"modules import one another in a circle: {' <- '.join(error.args[1])}"


def find_layer(name: str) -> str | None:
    """The row of LAYERS that a module belongs to, or None."""
    return next((modules for modules in LAYERS if matches(name, modules)), None)


def matches(name: str, patterns: str) -> bool:
    """Whether one of the patterns, parted by blanks, fits the whole name; `ltx.*` fits `ltx` itself too."""
    return any(fnmatch(name, pattern) or name == pattern.removesuffix(".*") for pattern in patterns.split())


def check_imports(module: Module, layer: str, imports: Iterable[Import]) -> Iterator[str]:
    """Findings for the imports of one module."""
    allowed = " ".join(["errors", layer, *LAYERS[layer].split()])
    for one in imports:
        where = f"{module.path}:{one.line}: {module.name}"
        if one.own and not matches(one.target, allowed):
            yield f"{where} imports {one.target}; it may import {allowed}"
        elif not one.own and not matches(module.name, THIRD_PARTY.get(one.target, THIRD_PARTY["*"])):
            yield f"{where} imports {one.target}; that is for {THIRD_PARTY.get(one.target, THIRD_PARTY['*'])}"


def find_imports(module: Module, by_name: dict[str, Module]) -> Iterator[Import]:
    """What a module imports, once a statement, the standard library left out."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(module, node)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from dict.fromkeys(one for target in targets for one in resolve(target, node.lineno, by_name))


def absolute_base(module: Module, node: ast.ImportFrom) -> str:
    """The dotted name between `from` and `import`, relative dots resolved."""
    if node.level == 0:
        return node.module or ""
    own = [PACKAGE, *(module.name.split(".") if module.name != PACKAGE else [])]
    above = node.level - (module.path.stem == "__init__")
    return ".".join([*own[: len(own) - above], *([node.module] if node.module else [])])


def resolve(target: str, line: int, by_name: dict[str, Module]) -> Iterator[Import]:
    """The module that a dotted name lies in: the longest part of it that is a source file."""
    top, _, rest = target.partition(".")
    if top != PACKAGE:
        if top not in sys.stdlib_module_names:
            yield Import(line, top, own=False)
        return
    while rest and rest not in by_name:
        rest = rest.rpartition(".")[0]
    yield Import(line, rest or PACKAGE, own=True)


def check_vfs_names(module: Module) -> Iterator[str]:
    """Findings for names such as xRead outside the modules that own them."""
    if module.name in VFS_MODULES:
        return
    for node in ast.walk(module.tree):
        for name in identifiers(node):
            if VFS_NAME.fullmatch(name):
                line = getattr(node, "lineno", 1)
                yield f"{module.path}:{line}: {module.name} uses {name}; APSW's VFS names belong to {VFS_MODULES[0]}"


def identifiers(node: ast.AST) -> Iterator[str]:
    """The names that one node introduces or uses."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

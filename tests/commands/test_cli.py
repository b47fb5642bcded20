"""The installed command as a process: exit codes, streams, signals, pipes."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import litevfs
from litevfs.cli import build_parser, main
from tests.commands.conftest import Run

ROOT = Path(__file__).parents[2]
REPLICA = str(ROOT / "tests" / "fixtures" / "orders" / "replica")
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r"
BUSY = f"SELECT max(n) FROM ({ENDLESS})"
"""Never gives a row and reads no page."""
TIME_LIMIT_S = 30


def command() -> list[str]:
    """The installed `litevfs`; where the package is not installed, the same entry as a module."""
    script = shutil.which("litevfs", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "litevfs"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}


def litevfs_command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        env=environment(),
        check=False,
    )


def started(arguments: Sequence[str], stdin: int | None = None, **variables: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command(), *arguments], stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=environment() | variables
    )


@pytest.mark.slow
@pytest.mark.plan("K08")
def test_results_go_to_stdout_and_success_is_0():
    run = litevfs_command("query", REPLICA, "SELECT count(*) FROM orders")
    assert (run.returncode, run.stdout, run.stderr) == (0, "2667\n", "")


@pytest.mark.plan("K08")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["query", REPLICA, "SELECT * FROM nope"], 1, "no such table: nope"),
        (["query", REPLICA, "SELECT 1", "--txid", "ff"], 1, "the newest TXID is 000000000000000c"),
        (["query", str(ROOT / "nowhere"), "SELECT 1", "--open-timeout", "50ms"], 1, "no such replica folder"),
        (["query", REPLICA, "SELECT cast(x'ff' AS text)"], 1, "select it with cast(... AS blob)"),
        (["dump", "nowhere.ltx"], 1, "No such file or directory: nowhere.ltx"),
        (["dump", REPLICA, "--txid", "77"], 1, "hint: litevfs ls shows the files"),
        (["restore", REPLICA, "-o", "nowhere/app.db"], 1, "hint: make its folder first"),
        (["follow", REPLICA, "-o", "nowhere/app.db"], 1, "hint: make its folder first"),
        (["dump", __file__], 1, "not an LTX file"),
        (["query", "s4://bucket", "SELECT 1"], 2, "did you mean s3://?"),
        (["query", REPLICA, "SELECT 1", "--poll-interval", "soon"], 2, "not a duration: 'soon'"),
        (["query", REPLICA, "SELECT 1", "--txid", "1", "--timestamp", "2026-01-01"], 2, "both txid and timestamp"),
        (["query", REPLICA, "SELECT 1", "--watch", "--txid", "1"], 2, "--watch needs a state that can change"),
        (["query", REPLICA], 2, "the following arguments are required: SQL"),
        (["query", REPLICA, "SELECT 1", "--pol-interval", "1s"], 2, "hint: did you mean --poll-interval?"),
        (["query", REPLICA, "SELECT 1", "--formt=csv"], 2, "hint: did you mean --format?"),
        (
            ["query", REPLICA, "SELECT 1", "SELECT 2"],
            2,
            "unrecognized arguments: SELECT 2; hint: put all of the SQL into",
        ),
        (
            ["query", "SELECT 1", "s3://bucket/db"],
            2,
            "a URL in the place of the SQL: s3://bucket/db; hint: the URL comes",
        ),
        (["query", REPLICA, ".tables"], 2, "no SQL: .tables; hint: 'litevfs shell URL' knows such commands"),
        (["diff", "--from", "1", "--tables", "orders", REPLICA], 2, "--tables takes all that follows: put other"),
        (["replicate", "s3://bucket/db", "app.db"], 2, "a URL in the place of the database"),
        (["query", REPLICA, "SELECT '\udcff'"], 2, "not text in UTF-8"),
        (["query", "/a\udcff", "SELECT 1"], 2, "no replica URL: not text in UTF-8"),
        (["restore", REPLICA, "-o", "", "--if-missing"], 1, "not the name of a file"),
        (["copy", "", "nowhere"], 2, "an empty text in the place of a replica URL; hint: is its variable set?"),
        (["copy", REPLICA, ""], 2, "an empty text in the place of a replica URL; hint: is its variable set?"),
        (["help"], 2, "; hint: litevfs --help"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["querry", REPLICA, "SELECT 1"], 2, "did you mean query?"),
        ([], 2, "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(run: Callable[..., Run], arguments: list[str], code: int, message: str):
    ended = run(*arguments)
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("litevfs: error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.plan("K08")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["query", REPLICA, "SELECT * FROM nope"], 1, "no such table: nope"),
        (["query", REPLICA, "SELECT '\udcff'"], 2, "not text in UTF-8"),
    ],
)
def test_so_it_is_in_a_process_of_its_own(arguments: list[str], code: int, message: str):
    run = litevfs_command(*arguments)
    assert (run.returncode, run.stdout) == (code, "")
    assert run.stderr.startswith("litevfs: error: ")
    assert message in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.plan("K08")
def test_debug_shows_the_traceback():
    run = litevfs_command("query", REPLICA, "SELECT * FROM nope", "--debug")
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert "litevfs: debug: " in run.stderr


@pytest.mark.plan("K08")
def test_ctrl_c_ends_a_busy_query_with_130_and_no_words():
    process = started(["query", REPLICA, BUSY, "--debug"])
    with process:
        assert process.stderr
        line = process.stderr.readline()
        assert "is at TXID" in line, "opened"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIME_LIMIT_S)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.plan("K08")
def test_ctrl_c_ends_a_wait_for_an_empty_replica_with_130_and_no_words(tmp_path: Path):
    process = started(["query", str(tmp_path), "SELECT 1", "--open-timeout", "60s", "--debug"])
    with process:
        assert process.stderr
        assert "trying again" in process.stderr.readline(), "it waits for the first file"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIME_LIMIT_S)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.plan("K08")
@pytest.mark.parametrize("name", ["query", "restore", "copy"])
def test_ctrl_c_ends_a_command_whose_storage_does_not_answer(name: str, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(TIME_LIMIT_S)
        url = f"s3://some-bucket/app?endpoint=http://127.0.0.1:{silent.getsockname()[1]}"
        last = {"query": ["SELECT 1"], "restore": ["-o", str(tmp_path / "db")], "copy": [str(tmp_path / "copy")]}
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        with started([name, url, *last.get(name, [])], **keys) as process:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1), "the request is under way"
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=TIME_LIMIT_S)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.slow
@pytest.mark.plan("K08")
@pytest.mark.parametrize("form", ["list", "table", "json"])
def test_a_reader_that_goes_away_ends_the_command_quietly(form: str):
    process = started(["query", REPLICA, ENDLESS, "--format", form])
    with process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(TIME_LIMIT_S) == 128 + signal.SIGPIPE


@pytest.mark.slow
@pytest.mark.plan("K08")
def test_a_reader_that_goes_away_ends_the_shell_quietly():
    process = started(["shell", REPLICA], stdin=subprocess.PIPE)
    with process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(f".mode list\n{ENDLESS};\n")
        process.stdin.close()
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(TIME_LIMIT_S) == 128 + signal.SIGPIPE


@pytest.mark.plan("K08")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_error_in_one_line():
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [*command(), "query", REPLICA, "SELECT 1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    assert (run.returncode, run.stderr) == (1, "litevfs: error: No space left on device\n")


@pytest.mark.slow
@pytest.mark.plan("K08")
@pytest.mark.parametrize(
    ("closed", "arguments", "code", "stdout", "stderr"),
    [
        (">&-", ["query", REPLICA, "SELECT 1"], 0, "", ""),
        (">&-", ["--help"], 0, "", ""),
        ("2>&-", ["query", REPLICA, "SELEC 1"], 1, "", ""),
        ("<&-", ["query", REPLICA, "-"], 0, "", ""),
        ("<&-", ["shell", REPLICA], 0, "", ""),
    ],
)
def test_a_stream_that_was_closed_before_the_command_began_is_one_that_no_process_reads_or_fills(
    closed: str, arguments: list[str], code: int, stdout: str, stderr: str
):
    run = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *command(), *arguments],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        env=environment(),
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (code, stdout, stderr)


@pytest.mark.slow
@pytest.mark.plan("K08")
def test_the_module_is_the_command_too_and_escapes_what_the_terminal_cannot_encode():
    run = subprocess.run(
        [sys.executable, "-m", "litevfs", "query", REPLICA, "SELECT 'é'"],
        capture_output=True,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert run.stdout == b"\\xe9\n"


@pytest.mark.plan("K09")
def test_a_secret_in_the_url_is_never_shown(run: Callable[..., Run]):
    secret = "wJalrXUtnFEMIK7MDENG"
    url = f"s3://bucket/app?endpoint=http://127.0.0.1:9&sseCustomerAlgorithm=AES256&sseCustomerKey={secret}"
    for arguments in (["status", url], ["query", url, "SELECT 1"], ["ls", url]):
        ended = run(*arguments, *(["--open-timeout", "0"] if "ls" not in arguments else []))
        assert ended.code in (1, 2)
        assert secret not in ended.out + ended.err
    shown = litevfs_command("--debug", "verify", url, "--open-timeout", "0")
    assert shown.returncode in (1, 2)
    assert "Traceback" in shown.stderr
    assert secret not in shown.stdout + shown.stderr


@pytest.mark.slow
def test_version_is_that_of_the_package():
    run = litevfs_command("--version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (run.returncode, run.stdout) == (0, f"litevfs {project['version']}\n")
    assert litevfs.__version__ == project["version"]


def test_the_entry_point_is_this_main():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = importlib.metadata.EntryPoint("litevfs", project["scripts"]["litevfs"], "console_scripts")
    assert entry.load() is main


def test_every_command_of_the_design_is_there_and_explains_itself(capsys: pytest.CaptureFixture[str]):
    for name in ("query", "shell", "status", "ls", "dump", "verify", "restore", "copy", "replicate", "compact", "demo"):
        with pytest.raises(SystemExit) as exit_:
            build_parser().parse_args([name, "--help"])
        assert exit_.value.code == 0
        assert f"usage: litevfs {name}" in capsys.readouterr().out


def test_warnings_of_the_library_are_messages_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import logging

    from litevfs.commands import ls

    def run(args: object) -> int:
        logging.getLogger("litevfs.live.replica").warning("the replica is %s", "stalled")
        return 0

    monkeypatch.setattr(ls, "run", run)
    assert main(["ls", REPLICA]) == 0
    assert capsys.readouterr().err == "litevfs: warning: the replica is stalled\n"
    assert not logging.getLogger("litevfs").handlers, "the handler goes with the command"


@pytest.mark.parametrize("arguments", [["--help"], ["query", REPLICA, "SELECT 1"]])
def test_a_command_loads_nothing_of_the_others(arguments):
    program = (
        "import sys\nfrom litevfs.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print(*sys.modules, file=sys.stderr)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment(), capture_output=True, text=True, check=True
    ).stderr.split()
    rooms = (
        "litevfs.replicate",
        "litevfs.maintenance",
        "litevfs.operations",
        "litevfs.commands.replicate",
        "apsw.shell",
    )
    assert not [name for name in loaded if name.startswith(rooms)]
    assert ("numpy" in loaded) == (arguments != ["--help"])

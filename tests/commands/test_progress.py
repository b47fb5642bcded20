"""The progress bar: on a terminal it is drawn and taken off again, elsewhere nothing is written."""

from __future__ import annotations

import io
import threading

import pytest

from litevfs.commands.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SHOW_CURSOR, HIDE_CURSOR, ERASE_LINE = "\x1b[?25h", "\x1b[?25l", "\x1b[2K"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_a_terminal_sees_share_bytes_and_rate_and_is_left_clean(terminal: Terminal) -> None:
    with ProgressBar("restoring", terminal) as bar:
        bar.update(30_000_000, 120_000_000)
        bar.update(60_000_000, 120_000_000)
    drawn = terminal.getvalue()
    assert "restoring" in drawn
    assert " 50.0 %" in drawn
    assert "60.0/120.0 MB" in drawn
    assert drawn.rindex(SHOW_CURSOR) > drawn.rindex(HIDE_CURSOR)
    assert drawn.endswith(ERASE_LINE)


def test_an_error_in_the_work_leaves_the_terminal_clean_too(terminal: Terminal) -> None:
    def work(bar: ProgressBar) -> None:
        bar.update(1, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ProgressBar("restoring", terminal) as bar:
        work(bar)
    assert SHOW_CURSOR in terminal.getvalue()
    assert terminal.getvalue().endswith(ERASE_LINE)


def test_threads_report_to_one_bar(terminal: Terminal) -> None:
    with ProgressBar("copying", terminal) as bar:
        threads = [threading.Thread(target=bar.update, args=(done, 100)) for done in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "copying" in terminal.getvalue()


def test_nothing_is_written_where_no_terminal_is_nor_before_the_first_report(terminal: Terminal) -> None:
    stream = io.StringIO()
    with ProgressBar("restoring", stream) as bar:
        bar.update(1, 2)
        bar.update(2, 2)
    with ProgressBar("restoring", terminal):
        pass
    assert (stream.getvalue(), terminal.getvalue()) == ("", "")

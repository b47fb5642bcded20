from __future__ import annotations

import io

from litevfs.commands.progress import ProgressBar, render


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_shows_share_rate_and_time_left() -> None:
    line = render(30_000_000, 120_000_000, 2.0)
    assert line == "[########......................]  25.0 %  30.0 MB of 120.0 MB  15.0 MB/s  ETA 00:06"
    assert render(1, 8_000_000, 1.0).endswith("1 B/s  ETA 2222:13:19")
    assert render(0, 10, 0.0).endswith("ETA --:--")
    assert "100.0 %" in render(0, 0, 1.0)


def test_terminal_gets_at_most_ten_lines_a_second_and_the_last_one_and_is_left_clean() -> None:
    terminal, times = Terminal(), iter(n / 100 for n in range(1000))
    with ProgressBar("restoring", terminal, monotonic=lambda: next(times)) as bar:
        for done in range(101):
            bar.update(done, 100)
    drawn = terminal.getvalue().split("\r\x1b[K")[1:]
    assert 9 <= len(drawn) <= 13
    assert drawn[-2].startswith("restoring [##############################] 100.0 %")
    assert drawn[-1] == ""


def test_nothing_is_written_where_no_terminal_is() -> None:
    stream = io.StringIO()
    with ProgressBar("restoring", stream) as bar:
        bar.update(1, 2)
        bar.update(2, 2)
    assert stream.getvalue() == ""

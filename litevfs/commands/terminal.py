"""Tables and progress on a terminal, drawn by rich, which is loaded only where there is one to draw on.

What goes into a pipe or a file stays plain text of one shape (`text`, `results`): scripts read it.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.text import Text


def draw_table(
    columns: Sequence[str], rows: Iterable[Sequence[Text | str]], *, header: bool = True, width: int | None = None
) -> str:
    """A table as wide as the terminal at most (`width` columns); what does not fit in its column is wrapped.

    The text must be free of control characters. Colors and box characters are those that TERM, NO_COLOR and the
    encoding allow.
    """
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=ROUNDED, show_header=header, header_style="bold")
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=width or shutil.get_terminal_size().columns).print(table)
    return out.getvalue().removesuffix("\n")


def number(text: str) -> Text:
    """A cell with its text on the right."""
    from rich.text import Text

    return Text(text, justify="right")


def null() -> Text:
    """The cell of a NULL, which does not look like the text 'NULL'."""
    from rich.text import Text

    return Text("NULL", style="dim italic")


def start_progress(stream: TextIO) -> Progress:
    """A started display of bytes done, rate and time left; `stop()` takes it off the screen again."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:5.1f} %"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream, force_terminal=True),
        transient=True,
        redirect_stdout=False,  # results go to standard output as they are
        redirect_stderr=False,
    )
    progress.start()
    return progress

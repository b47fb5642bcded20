"""What a replicator logs of its failures."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from litevfs.errors import StorageError
from litevfs.replicate import attempts
from litevfs.replicate.attempts import SAME_AGAIN_S, Said, attempt


def test_an_error_that_stays_the_same_is_logged_once_a_minute(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    now_s, said, closed = 1000.0, Said(), threading.Event()
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: now_s))

    def fails(text: str) -> int:
        def action(_deadline: float) -> None:
            raise StorageError(text)

        assert str(attempt(action, Path("app.db"), closed, said)) == text
        return len(caplog.records)

    assert [fails("down"), fails("down"), fails("refused"), fails("down")] == [1, 1, 2, 3]
    now_s += SAME_AGAIN_S
    assert [fails("down"), fails("down")] == [4, 4]
    said.forget()  # it succeeded meanwhile
    assert fails("down") == 5
    closed.set()
    assert fails("closed") == 5

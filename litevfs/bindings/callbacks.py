"""Python functions as C callbacks that neither raise nor get freed.

ctypes prints what a callback raises, and C gets an undefined number in place of a result: SQLite could take
a page as read that was not. A function given to `c_callback` catches everything in a `try` that is all of its body.
One gap remains: Python runs signal handlers (Ctrl-C raises there) at the first instruction of a function, before any
`try`, and it handles a signal that came while SQLite was busy exactly there. So `c_callback` replaces that
instruction by one that handles no signal.
"""

from __future__ import annotations

import _thread
import ctypes
import dis
import signal
import threading
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

from litevfs.errors import SQLiteLibraryError

Prototype = TypeVar("Prototype")

_AFTER_YIELD_FROM = 2
"""Argument of the instruction RESUME that says "in the middle of a function"; Python handles no signal there."""


def c_callback(prototype: type[Prototype], function: Callable[..., Any]) -> Prototype:
    """`function` as a C function pointer, for as long as the process lives.

    SQLite may call it while the interpreter ends, when no name refers to it any more: so it is never freed.
    """
    callback = prototype(_undisturbed(function))  # type: ignore[call-arg]  # a type of ctypes takes a function
    keep_for_ever(callback)
    return callback


def keep_for_ever(thing: object) -> None:
    """Never free an object, nor the memory that it stands for."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def interrupt_soon() -> None:
    """Send Ctrl-C once more, after SQLite has returned: in a callback, Ctrl-C only ends the statement."""
    _thread.start_new_thread(_interrupt, ())


def _interrupt() -> None:
    time.sleep(0.001)  # after the callback has returned; if it hits the next callback, that one sends it again
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # a real signal wakes a sleeping thread


def _undisturbed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, but no signal handler runs before its first statement."""
    plain = cast("FunctionType", function)
    code = bytearray(plain.__code__.co_code)
    for i in range(0, len(code), 2):
        if code[i] == dis.opmap["RESUME"]:
            code[i + 1] = code[i + 1] & ~3 | _AFTER_YIELD_FROM
            break
    else:
        raise SQLiteLibraryError("this version of Python is not known well enough to be called by SQLite")
    return FunctionType(
        plain.__code__.replace(co_code=bytes(code)),
        plain.__globals__,
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )

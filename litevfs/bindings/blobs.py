"""Open blobs of either library whose errors say what to do. Imports neither library.

Neither library lets another class inherit from its blob, so ours holds one, and `isinstance` takes it for one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

_SPECIAL = ("__enter__", "__exit__", "__iter__", "__next__", "__len__", "__getitem__", "__setitem__", "__delitem__")


def hinting_blobs(kind: type, errors: type[Exception], add_hint: Callable[[Any], object]) -> type:
    """A class that does what `kind` does: `Blob(blob, turn)` makes each call within `turn`, and hands errors on with
    what `add_hint` appends to their message.
    """

    class Blob:
        __slots__ = ("__weakref__", "_blob", "_turn")

        def __init__(self, blob: Any, turn: AbstractContextManager[Any] | None = None) -> None:
            self._blob = blob
            self._turn = nullcontext() if turn is None else turn

        def __repr__(self) -> str:
            return repr(self._blob)

        @property  # type: ignore[misc]  # what `isinstance` asks if the type itself is none
        def __class__(self) -> type:
            return kind

        @property
        def closed(self) -> bool:
            return bool(self._blob.closed)

    def hinting(method: Any) -> Any:
        @wraps(method)
        def call(self: Any, /, *arguments: Any, **keywords: Any) -> Any:
            blob = self._blob
            try:
                with self._turn:
                    result = method(blob, *arguments, **keywords)
                return self if result is blob else result
            except errors as error:
                del self, blob  # or whatever keeps the error would keep the connection
                add_hint(error)
                raise

        return call

    for name in dir(kind):
        method = getattr(kind, name)
        if callable(method) and (name in _SPECIAL or not name.startswith("_")):
            setattr(Blob, name, hinting(method))
    Blob.__name__ = Blob.__qualname__ = kind.__name__
    return Blob

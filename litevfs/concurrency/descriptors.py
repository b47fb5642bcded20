"""Waiting for descriptors: by `poll`, which takes any number, else by `select`. Knows nothing of what they are."""

from __future__ import annotations

import math
import select
from collections.abc import Collection


def wait_for(
    readable: Collection[int] = (), writable: Collection[int] = (), timeout_s: float | None = None
) -> set[int]:
    """The descriptors that have something to read, or room to write, or whose other end is closed.

    Waits until there is one, and no longer than `timeout_s`: then the set is empty. Monkey patching by gevent replaces
    `select.poll`, that by eventlet removes it.
    """
    if not hasattr(select, "poll"):
        return {fd for ready in select.select(readable, writable, (), timeout_s) for fd in ready}
    poll = select.poll()
    for descriptor in readable:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poll.register(descriptor, select.POLLOUT)
    timeout_ms = None if timeout_s is None else math.ceil(timeout_s * 1000)
    return {descriptor for descriptor, _ in poll.poll(timeout_ms)}

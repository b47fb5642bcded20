"""A TCP proxy that delays, cuts connections, damages or holds back bytes: for protocols that are not HTTP.

Knows bytes and connections only; for HTTP there is `s3_proxy`, which also counts requests.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable

_HOLD_LIMIT_S = 60.0


class TCPProxy:
    """Forwards to `upstream` from a free loopback port, `port`, until it is closed.

    Bytes to the server wait `delay_s` seconds on their way, so that each request has a round trip of that time.
    """

    def __init__(self, upstream: tuple[str, int], *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._forgotten: set[socket.socket] = set()
        self._left: int | None = None  # bytes that still pass before all connections end
        self._sound: int | None = None  # bytes from the server that still pass before one is damaged
        self._free: int | None = None  # bytes that still pass before all are held back
        self.happened = 0  # connections that were cut and bytes that were damaged
        self._passing = threading.Event()
        self._passing.set()
        self._start(self._accept)

    def __enter__(self) -> TCPProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._passing.set()
        _shut(self._listener)
        self.drop()
        for thread in self._threads:
            thread.join(10)

    def cut_after(self, count: int) -> None:
        """End all connections once so many more bytes have passed, in both directions together."""
        with self._lock:
            self._left = count

    def corrupt_after(self, count: int) -> None:
        """Flip one bit of the byte that follows so many more bytes from the server, all connections together."""
        with self._lock:
            self._sound = count

    def drop(self) -> None:
        """End all connections now."""
        with self._lock:
            sockets, self._sockets, self._left = self._sockets, [], None
        for sock in sockets:
            _shut(sock)

    def forget(self) -> None:
        """Let no byte of the connections that there are pass any more, without ending them; new ones work.

        So does a router that translates addresses after a while of silence.
        """
        with self._lock:
            self._forgotten |= set(self._sockets)

    def hold(self) -> None:
        """Hold all bytes back from now on; connections stay open."""
        self._passing.clear()

    def hold_after(self, count: int) -> None:
        """As `hold`, once so many more bytes have passed, in both directions together."""
        with self._lock:
            self._free = count

    def release(self) -> None:
        """Let all bytes pass again, and forget what was to come."""
        with self._lock:
            self._left = self._sound = self._free = None
        self.delay_s = 0.0
        self._passing.set()

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name="tcp-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
            except OSError:
                return
            for sock in client, server:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [client, server]
            self._forward(client, server, delayed=True)
            self._forward(server, client, delayed=False)

    def _forward(self, source: socket.socket, target: socket.socket, *, delayed: bool) -> None:
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def receive() -> None:
            try:
                while data := source.recv(1 << 16):
                    waiting.put((time.monotonic() + (self.delay_s if delayed else 0.0), data))
            except OSError:
                pass
            waiting.put((0.0, b""))

        def send() -> None:
            try:
                while self._pass_one(waiting, target, is_answer=not delayed):
                    pass
            except OSError:
                pass
            finally:
                _shut(source)
                _shut(target)

        self._start(receive)
        self._start(send)

    def _pass_one(
        self, waiting: queue.SimpleQueue[tuple[float, bytes]], target: socket.socket, *, is_answer: bool
    ) -> bool:
        due, data = waiting.get()
        if not data:
            return False
        remaining = due - time.monotonic()
        if remaining > 0:
            threading.Event().wait(remaining)
        with self._lock:
            if self._free is not None:
                self._free -= len(data)
                if self._free < 0:
                    self._free = None
                    self._passing.clear()
        self._passing.wait(_HOLD_LIMIT_S)
        with self._lock:
            is_over = self._left is not None and self._left < len(data)
            if self._left is not None:
                self._left -= len(data)
            self.happened += is_over
            if is_answer:
                data = self._damaged(data)
        if is_over:
            self.drop()
            return False
        if target not in self._forgotten:
            target.sendall(data)
        return True

    def _damaged(self, data: bytes) -> bytes:
        place, self._sound = self._sound, None
        if place is None:
            return data
        if place >= len(data):
            self._sound = place - len(data)
            return data
        self.happened += 1
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()

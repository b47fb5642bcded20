"""A TCP proxy that cuts connections, or lets nothing pass any more: for protocols that are not HTTP."""

from __future__ import annotations

import socket
import threading


class TCPProxy:
    """Forwards to `upstream` from a free loopback port until it is closed."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._left: int | None = None  # bytes that still pass before all connections end
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

    def drop(self) -> None:
        """End all connections now."""
        with self._lock:
            sockets, self._sockets, self._left = self._sockets, [], None
        for sock in sockets:
            _shut(sock)

    def hold(self) -> None:
        """Let nothing pass from now on; connections stay."""
        self._passing.clear()

    def _start(self, target, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._upstream)
            with self._lock:
                self._sockets += [client, server]
            self._start(self._pump, client, server)
            self._start(self._pump, server, client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 15):
                self._passing.wait(60)
                with self._lock:
                    is_over = self._left is not None and self._left < len(data)
                    if self._left is not None:
                        self._left -= len(data)
                if is_over:
                    self.drop()
                    return
                target.sendall(data)
        except OSError:
            pass
        finally:
            _shut(source)
            _shut(target)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()

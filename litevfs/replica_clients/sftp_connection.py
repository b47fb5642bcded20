"""One SSH connection and its SFTP channels, lent to one call at a time. Knows no LTX file.

A channel of paramiko serves one thread, so parallel calls take several, up to what OpenSSH grants one connection.
Closing shuts the socket down, which ends every call under way. After a fork the child makes its own connection.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from litevfs.concurrency.condition import Condition
from litevfs.concurrency.workers import start_thread
from litevfs.errors import (
    OptionError,
    StorageClosedError,
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.addresses import connected_socket, connection_error
from litevfs.replica_clients.idle import LastUse
from litevfs.replica_clients.sftp_requests import Requests
from litevfs.texts import expand_home

_MAX_CHANNELS = 8  # OpenSSH grants a connection 10 sessions (MaxSessions)
_CONNECT_TIMEOUT_S = 10.0
_PARAMIKO_LOGGER = "litevfs.replica_clients.sftp.paramiko"
"""Where paramiko logs what its thread ends with, with a traceback; the call that fails of it raises it, too."""
logging.getLogger(_PARAMIKO_LOGGER).addHandler(logging.NullHandler())  # without any handler, it is written to stderr
_HOST_KEY_HINT = (
    "add the host to ~/.ssh/known_hosts (`ssh-keyscan` prints its keys: compare them), or say in the URL another file, "
    "knownHosts=, or the key itself, hostKey="
)
_AUTH_HINT = "keys come from the agent, ~/.ssh or keyPath= in the URL; a password from LITEVFS_SFTP_PASSWORD"


def sftp_password() -> str | None:
    """The password or passphrase that the environment holds now."""
    return os.environ.get("LITEVFS_SFTP_PASSWORD") or None


@dataclass(frozen=True, slots=True)
class SSHTarget:
    """The server to connect to, and how to verify it."""

    host: str
    port: int
    user: str
    password: str | None = field(repr=False)
    key_path: str | None
    known_hosts: str | None
    host_key: str | None  # as in authorized_keys: type and base64


class Channel:
    """An SFTP channel whose waits have a time limit."""

    def __init__(self, sftp: Any, generation: int) -> None:
        self.sftp = sftp
        self.requests = Requests(sftp)
        self.generation = generation  # `SFTPConnection.generation` when its open files were opened

    def limit(self, deadline: float) -> None:
        """Let each wait from now on end by `deadline`. Raises TimeoutError if the deadline has passed."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("no time is left")
        self.sftp.get_channel().settimeout(remaining)


class SFTPConnection:
    """The channels to one server. Raises OptionError if `paramiko` is not installed."""

    def __init__(self, target: SSHTarget, timeout_s: float) -> None:
        try:
            import paramiko
        except ImportError as exc:
            raise OptionError("sftp:// needs the package paramiko", hint="pip install litevfs[sftp]") from exc
        self._paramiko: Any = paramiko
        self._target = target
        self._timeout_s = timeout_s
        self._is_closed = False
        self._forget()

    def _forget(self) -> None:
        """Begin without a connection: at first, and in the child of a fork, whose parent goes on using it."""
        self._pid = os.getpid()
        self._change = Condition()
        self._idle: list[Channel] = []
        self._lent = 0
        self.generation = 0  # grows as files are replaced and deleted: then no open file is used any more
        self._ssh: Any = None
        self._sock: socket.socket | None = None
        self._forgets_connection = False  # it has rested for so long that it may be dead
        self._is_connecting = False
        self._last_use = LastUse()

    def check_open(self) -> None:
        """Raise StorageClosedError after `close`."""
        if self._is_closed:
            raise StorageClosedError("the replica client is closed")

    @contextmanager
    def channel(self, what: str, deadline: float | None = None) -> Iterator[Channel]:
        """A channel for one call about `what`, which ends by `deadline`; translates the errors of the channel.

        It is one that has the file `what` open, if there is such.
        """
        self.check_open()
        if os.getpid() != self._pid:
            self._forget()
        until = time.monotonic() + self._timeout_s if deadline is None else deadline
        with self._translated(what, until):
            if time.monotonic() >= until:
                raise TimeoutError("no time is left")
            channel = self._borrow(what, until)
        is_sound = False
        try:
            with self._translated(what, until if deadline is not None else math.inf):
                channel.limit(until)
                if channel.generation != self.generation:
                    channel.generation = self.generation
                    channel.requests.close_all()
                yield channel
            is_sound = True
        except StorageError as error:
            is_sound = not isinstance(error, TransientStorageError | StorageClosedError)
            if not is_sound and not isinstance(error, StorageTimeoutError):
                self._drop_idle()  # the connection broke, and idle channels use the same one
            raise
        except Exception:  # an error of the caller, such as a failing stream: answers may still be under way
            raise
        finally:
            self._give_back(channel, is_sound=is_sound)

    def close(self) -> None:
        """End all calls under way and the connection. Idempotent."""
        self._is_closed = True
        if os.getpid() != self._pid:
            return
        with self._change:
            sock, ssh, self._ssh, self._idle = self._sock, self._ssh, None, []
            self._change.notify_all()
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if ssh is not None:
            ssh.close()
        if sock is not None:
            sock.close()

    def close_files(self) -> None:
        """Let no call use a file that is open now: one was replaced or deleted."""
        with self._change:
            self.generation += 1

    def _borrow(self, what: str, until: float) -> Channel:
        with self._change:
            if not self._lent and self._last_use.is_long_ago:
                self._forgets_connection, self._idle = True, []
            while True:
                self.check_open()
                if self._idle:
                    self._lent += 1
                    places = range(len(self._idle) - 1, -1, -1)
                    return self._idle.pop(next((i for i in places if self._idle[i].requests.is_open(what)), -1))
                if not self._is_connecting and self._lent < _MAX_CHANNELS:
                    self._is_connecting = True
                    break
                if not self._change.wait(until - time.monotonic()):
                    raise TimeoutError("no connection is free")
        channel = None
        try:
            channel = self._new_channel(until)
            return channel
        finally:
            with self._change:
                self._is_connecting = False
                self._lent += channel is not None
                self._change.notify_all()

    def _new_channel(self, until: float) -> Channel:
        until = min(until, time.monotonic() + _CONNECT_TIMEOUT_S)
        ssh, paramiko = self._ssh, self._paramiko
        transport = None if ssh is None or self._forgets_connection else ssh.get_transport()
        if transport is not None and transport.is_active():
            try:
                return self._open_channel(transport, until)
            except paramiko.ChannelException:  # the server answers, and refuses
                raise
            except (OSError, EOFError, paramiko.SSHException):
                self.check_open()  # the connection broke, which paramiko's thread has not seen yet: make another
        return self._open_channel(self._connect(until).get_transport(), until)

    def _open_channel(self, transport: Any, until: float) -> Channel:
        session = transport.open_session(timeout=max(0.001, until - time.monotonic()))
        session.settimeout(max(0.001, until - time.monotonic()))
        with _at(until, session.event.set):  # paramiko waits for this answer without a limit
            session.invoke_subsystem("sftp")
        return Channel(self._paramiko.SFTPClient(session), self.generation)

    def _connect(self, until: float) -> Any:
        sock = connected_socket(self._target.host, self._target.port, _connect, until)
        ssh = self._paramiko.SSHClient()
        ssh.set_log_channel(_PARAMIKO_LOGGER)
        with self._change:
            old_ssh, old_sock, self._sock, self._ssh, self._idle = self._ssh, self._sock, sock, ssh, []
            self._forgets_connection = False
        if old_ssh is not None:
            old_ssh.close()
        if old_sock is not None:
            old_sock.close()
        try:
            self.check_open()  # `close` may have run before it knew the socket
            self._load_host_keys(ssh)
            with _at(until, lambda: sock.shutdown(socket.SHUT_RDWR)):  # paramiko limits each step, not all together
                self._log_in(ssh, sock, until)
        except BaseException:
            ssh.close()
            sock.close()
            raise
        return ssh

    def _log_in(self, ssh: Any, sock: socket.socket, until: float) -> None:
        target, left_s = self._target, max(0.001, until - time.monotonic())
        key_path = None if target.key_path is None else str(expand_home(target.key_path))
        try:
            ssh.connect(
                target.host.strip("[]"),
                target.port,
                target.user,
                password=target.password,
                key_filename=key_path,
                look_for_keys=key_path is None,
                allow_agent=key_path is None,
                sock=sock,
                timeout=left_s,
                banner_timeout=left_s,
                auth_timeout=left_s,
            )
        except self._paramiko.SSHException as exc:
            password = sftp_password()
            is_refused = isinstance(exc, self._paramiko.AuthenticationException)
            if is_refused and password is not None and password != target.password:
                self._target = replace(target, password=password)  # for the next try
            elif key_path is not None:
                self._check_key(key_path)
            raise

    def _check_key(self, path: str) -> None:
        """Raise StoragePermissionError for a file of `keyPath=` that is no key, or has a passphrase.

        Paramiko passes over either, and is refused without a key.
        """
        paramiko, problem = self._paramiko, "is no private key"
        for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
            try:
                kind.from_private_key_file(path, password=self._target.password)
                return
            except paramiko.PasswordRequiredException:
                problem = "has a passphrase"
            except (paramiko.SSHException, ValueError):
                pass  # a key of another kind
        message = f"cannot log in to {self._target.host}:{self._target.port}: the file of keyPath= {problem}: {path}"
        hint = "LITEVFS_SFTP_PASSWORD may hold it" if "passphrase" in problem else "name the private key's file"
        raise StoragePermissionError(message, hint=hint)

    def _load_host_keys(self, ssh: Any) -> None:
        target, paramiko = self._target, self._paramiko
        ssh.set_missing_host_key_policy(paramiko.RejectPolicy())
        if target.host_key is not None:
            kind, _, text = target.host_key.strip().partition(" ")
            host = target.host if target.port == 22 else f"[{target.host.strip('[]')}]:{target.port}"
            entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{host} {kind} {text.split(' ')[0]}")
            if entry is None or entry.key is None:
                raise OptionError("hostKey in the sftp URL is no key", hint="for example hostKey=ssh-ed25519+AAAA...")
            ssh.get_host_keys().add(host, entry.key.get_name(), entry.key)
            return
        path = expand_home(target.known_hosts or "~/.ssh/known_hosts")
        if target.known_hosts is not None or path.exists():
            ssh.load_host_keys(str(path))

    def _give_back(self, channel: Channel, *, is_sound: bool) -> None:
        with self._change:
            self._lent -= 1
            self._last_use.note()
            keep = is_sound and not self._is_closed
            if keep:
                self._idle.append(channel)
            self._change.notify()
        if not keep:
            with suppress(Exception):  # it is of no more use, whatever it says
                channel.sftp.get_channel().close()

    def _drop_idle(self) -> None:
        with self._change:
            idle, self._idle = self._idle, []
        for channel in idle:
            with suppress(Exception):  # it is of no more use, whatever it says
                channel.sftp.get_channel().close()

    @contextmanager
    def _translated(self, what: str, until: float) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            error.key = error.key or what
            raise
        except (OSError, EOFError, self._paramiko.SSHException) as exc:
            if self._is_closed:
                raise StorageClosedError("the replica client was closed during a call", key=what) from exc
            translated = self._error(exc, what)
            if isinstance(translated, TransientStorageError) and time.monotonic() >= until:  # paramiko's messages vary
                translated = StorageTimeoutError(translated.message, key=what)
            raise translated from exc

    def _error(self, exc: Exception, what: str) -> StorageError:
        paramiko, where = self._paramiko, f"{self._target.host}:{self._target.port}"
        if isinstance(exc, paramiko.BadHostKeyException) or "not found in known_hosts" in str(exc):
            message = f"{where} does not show a host key that is known"
            return StoragePermissionError(message, key=what, hint=_HOST_KEY_HINT)
        if isinstance(exc, TimeoutError) or "Authentication timeout" in str(exc):  # of a class that says "refused"
            return StorageTimeoutError(f"no answer from {where} within the time limit", key=what)
        if isinstance(exc, paramiko.AuthenticationException) or "No authentication methods" in str(exc):
            return StoragePermissionError(f"{where} refuses to log in {self._target.user!r}", key=what, hint=_AUTH_HINT)
        # An error of a file with a name is of this machine: paramiko's have none.
        if isinstance(exc, OSError) and exc.filename is not None:
            message = f"{exc.filename}, which is needed to log in to {where}: {exc.strerror}"
            return StoragePermissionError(message, key=what, hint="check keyPath= and knownHosts= of the URL")
        number = exc.errno if isinstance(exc, OSError) else None
        if number == errno.ENOENT:
            return StorageNotFoundError("no such file", key=what)
        if number in (errno.EACCES, errno.EPERM):
            return StoragePermissionError(f"{where} refuses: {exc}", key=what, hint="check the owner and the mode")
        if number is None and isinstance(exc, OSError) and exc.args and str(exc) != "Socket is closed":
            return StorageError(f"{where} says: {exc}", key=what)
        return connection_error(where, exc, what)


def _connect(sock: socket.socket, address: Any, timeout_s: float | None) -> None:
    sock.settimeout(timeout_s)
    sock.connect(address)


@contextmanager
def _at(until: float, end: Callable[[], object]) -> Iterator[None]:
    """Call `end` at that time if the block runs so long. Raises TimeoutError for an error of the block from then on."""
    ended = threading.Event()

    def watch() -> None:
        if not ended.wait(max(0.0, until - time.monotonic())):
            with suppress(OSError):
                end()

    watching = start_thread(watch, "litevfs-sftp-limit")
    try:
        yield
    except Exception as exc:
        if time.monotonic() < until:
            raise
        raise TimeoutError("no answer within the time limit") from exc
    finally:
        ended.set()
        watching.join(1.0)

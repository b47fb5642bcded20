"""Google's ordinary credentials (`google-auth`), with its requests sent over our own connections.

Application default credentials, as every Google library finds them: the file that GOOGLE_APPLICATION_CREDENTIALS names
(service account, workload identity federation, ...), those that `gcloud auth application-default login` left, the
metadata server of this machine.
"""

from __future__ import annotations

import calendar
import threading
import time
from collections.abc import Mapping
from typing import Any

from litevfs.errors import OptionError, StorageError, StoragePermissionError, TransientStorageError
from litevfs.replica_clients.http.tokens import Token, Tokens
from litevfs.replica_clients.http.transport import Transport

PERMISSION_HINT = (
    "a reader needs the role Storage Object Viewer on the bucket, a primary Storage Object User; credentials come from "
    "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login` or this machine's service account"
)
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_ANSWER_LIMIT_BYTES = 1 << 20


class _Answer:
    """An HTTP answer, as google-auth reads it."""

    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.status, self.headers, self.data = status, headers, data


def google_tokens(transport: Transport, timeout_s: float) -> Tokens:
    """Tokens of Google's default credentials. Raises OptionError where google-auth is not installed."""
    try:
        import google.auth
        import google.auth.exceptions
    except ImportError as exc:
        raise OptionError("gs:// needs the package google-auth", hint="pip install litevfs[gs]") from exc

    library: Any = google.auth  # its types know only requests of its own classes
    errors: Any = google.auth.exceptions

    def request(
        url: str, method: str = "GET", body: bytes | None = None, headers: Any = None, timeout: Any = None, **_: Any
    ) -> _Answer:
        if "/v1/projects/" in url:  # google-auth asks for the project of some credentials: not needed here
            return _Answer(404, {}, b"{}")
        try:
            own = {"Accept-Encoding": "identity", "User-Agent": "litevfs"}
            response = transport.request("AUTH", method, url, {**own, **(headers or {})}, body)
            data = transport.read_body(response, url, _ANSWER_LIMIT_BYTES)
        except StorageError as exc:
            raise errors.TransportError(exc) from exc
        return _Answer(response.status, response.headers, data)

    lock = threading.Lock()
    found: list[Any] = []

    def fetch() -> Token:
        try:
            with lock:
                if not found:
                    found.append(library.default(scopes=_SCOPES, request=request)[0])
                    if found[0].valid:
                        return _token(found[0], timeout_s)
                found[0].refresh(request)
        except errors.TransportError as exc:
            raise TransientStorageError(f"what gives out credentials does not answer: {exc}") from exc
        except errors.GoogleAuthError as exc:
            found.clear()  # the next ones are read from their file again, which may have been replaced
            raise StoragePermissionError(f"no credentials: {exc}", hint=PERMISSION_HINT) from exc
        return _token(found[0], timeout_s)

    return Tokens(fetch)


def _token(credentials: Any, default_s: float) -> Token:
    expiry = credentials.expiry  # a naive datetime in UTC
    expires_s = calendar.timegm(expiry.timetuple()) if expiry else time.time() + default_s
    return Token(str(credentials.token), expires_s)

"""How requests to Azure Blob Storage are authorized: a SAS token, the account's key, or a token of Azure's own library.

In Litestream's order and from its variables, then from those of Azure's command: LITESTREAM_AZURE_SAS_TOKEN or
AZURE_STORAGE_SAS_TOKEN, LITESTREAM_AZURE_ACCOUNT_KEY or AZURE_STORAGE_KEY, then `azure-identity`'s default chain.
Source of the signature: "Authorize with Shared Key" in Azure's reference of its REST API.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from litevfs.errors import OptionError, StoragePermissionError, TransientStorageError
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.tokens import Token, Tokens

API_VERSION = "2021-08-06"
PERMISSION_HINT = (
    "a reader needs the role Storage Blob Data Reader on the container, a primary Storage Blob Data Contributor; "
    "credentials come from LITESTREAM_AZURE_ACCOUNT_KEY, LITESTREAM_AZURE_SAS_TOKEN or Azure's default chain"
)
_SCOPE = "https://storage.azure.com/.default"
_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


class AzureAccess:
    """Adds authorization to the requests of one account. Raises OptionError for a bad key or a missing package."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._tokens: Tokens | None = None
        self._sas, self._key = _sas_and_key(account)
        if not self._sas and not self._key:
            self._tokens = Tokens(_identity_fetch())

    @staticmethod
    def is_refused(answer: Answer) -> bool:
        """Whether credentials are no longer valid, which is not that they permit too little."""
        return answer.status == 401 or answer.headers.get("x-ms-error-code") == "AuthenticationFailed"

    def address(self, url: str) -> str:
        """The URL to send: with the SAS token."""
        return f"{url}{'&' if '?' in url else '?'}{self._sas}" if self._sas else url

    def authorize(self, method: str, url: str, headers: dict[str, str], deadline: float | None) -> dict[str, str]:
        """The headers to send."""
        headers = {"x-ms-version": API_VERSION, **headers, "x-ms-date": formatdate(usegmt=True)}
        if self._tokens is not None:
            headers["Authorization"] = f"Bearer {self._tokens.get(deadline)}"
        elif self._key:
            text = string_to_sign(self._account, method, url, headers)
            signature = base64.b64encode(hmac.digest(self._key, text.encode(), hashlib.sha256)).decode()
            headers["Authorization"] = f"SharedKey {self._account}:{signature}"
        return headers

    def renew(self, refused: str, deadline: float | None) -> bool:
        """Look for others than the refused ones, in the variables too; returns whether there are."""
        if self._tokens is not None:
            return self._tokens.renew(refused, deadline)
        try:
            found = _sas_and_key(self._account)
        except OptionError:
            return False
        if found == (self._sas, self._key) or not any(found):
            return False
        self._sas, self._key = found
        return True

    def close(self) -> None:
        """End waits for tokens."""
        if self._tokens is not None:
            self._tokens.close()


def string_to_sign(account: str, method: str, url: str, headers: dict[str, str]) -> str:
    """The text of a request that the account's key signs."""
    folded = {name.lower(): value.strip() for name, value in headers.items()}
    if folded.get("content-length") == "0":
        folded["content-length"] = ""
    parts = urlsplit(url)
    own = "".join(f"{name}:{folded[name]}\n" for name in sorted(folded) if name.startswith("x-ms-"))
    query = sorted((name.lower(), value) for name, value in parse_qsl(parts.query, keep_blank_values=True))
    resource = f"/{account}{parts.path}" + "".join(f"\n{name}:{value}" for name, value in query)
    return "\n".join([method, *(folded.get(name, "") for name in _SIGNED_HEADERS), own + resource])


def _sas_and_key(account: str) -> tuple[str, bytes]:
    """The SAS token or the account's key that the variables hold; one at most."""
    sas = _first("LITESTREAM_AZURE_SAS_TOKEN", "AZURE_STORAGE_SAS_TOKEN").removeprefix("?")
    key = "" if sas or not account else _first("LITESTREAM_AZURE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
    try:
        return sas, base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise OptionError("the key of the Azure account is not base64", hint="copy it once more") from None


def _first(*variables: str) -> str:
    return next((value for name in variables if (value := os.environ.get(name))), "")


def _identity_fetch() -> Callable[[], Token]:
    try:
        import azure.identity
    except ImportError as exc:
        hint = "pip install litevfs[azure], or set LITESTREAM_AZURE_ACCOUNT_KEY or LITESTREAM_AZURE_SAS_TOKEN"
        raise OptionError("abs:// without a key or a SAS token needs the package azure-identity", hint=hint) from exc
    library: Any = azure.identity
    found: list[Any] = []  # the library's credential
    given: list[str] = []  # the newest token

    def fetch() -> Token:
        if not found:
            found.append(library.DefaultAzureCredential())
        try:
            token = found[0].get_token(_SCOPE)
            if token.token in given:  # refused: the library keeps it until its end, a new credential does not
                found[0] = library.DefaultAzureCredential()
                token = found[0].get_token(_SCOPE)
            given[:] = [token.token]
        except library.CredentialUnavailableError as exc:
            found.clear()  # the next one reads its settings and files again
            raise StoragePermissionError(f"no credentials: {_line(exc)}", hint=PERMISSION_HINT) from exc
        except Exception as exc:
            if type(exc).__name__ == "ClientAuthenticationError":  # of azure-core
                found.clear()
                raise StoragePermissionError(f"no credentials: {_line(exc)}", hint=PERMISSION_HINT) from exc
            raise TransientStorageError(f"what gives out credentials does not answer: {_line(exc)}") from exc
        return Token(str(token.token), float(token.expires_on or time.time()))

    return fetch


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]

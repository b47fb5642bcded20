"""What botocore knows: AWS's credential chain, configuration files, and the addresses of its partitions and services.

Imported only if `environment` does not say all: loading botocore takes as much CPU as the rest of opening a replica.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import botocore.session
from botocore import UNSIGNED, exceptions
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.parsers import ResponseParserError

from litevfs.errors import StorageError, StoragePermissionError, TransientStorageError
from litevfs.replica_clients.s3.errors import CREDENTIALS_HINT, MESSAGE_LIMIT, STALE_CREDENTIALS, error_from_answer
from litevfs.replica_clients.s3.signing import Credentials
from litevfs.replica_clients.s3.url import S3Location

_CREDENTIALS_SERVICE = "the service that gives out credentials"
_CREDENTIAL_ERRORS = (
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.ProfileNotFound,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
)


class Chain:
    """One session of botocore's, so that there is one set of credentials. The caller makes one call at a time.

    `timeout_s` bounds each wait for a service of the chain. `redacted` takes the secrets out of a message about
    `server`, and `forget` is called where credentials turn out to be stale. All methods raise StorageError.
    """

    def __init__(
        self, server: str, timeout_s: float, *, redacted: Callable[[str], str], forget: Callable[[], None]
    ) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self._redacted = redacted
        self._forget = forget
        self._known_session: botocore.session.Session | None = None

    def credentials(self) -> ChainCredentials:
        """The first credentials of the chain."""
        with self.translated():
            found = self._session.get_credentials()
            if found is None:
                raise exceptions.NoCredentialsError
            return ChainCredentials(found, self)

    def region(self) -> str | None:
        """The region that is configured."""
        with self.translated():
            return self._configured("region")

    def certificates(self) -> str | None:
        """The file of authorities that is configured."""
        with self.translated():
            return self._configured("ca_bundle")

    def addresses(self, location: S3Location, region: str, keys: Credentials | None) -> tuple[str, str, str, str]:
        """The URLs of a location's bucket and prefix, and the region and the service of signatures.

        They are cut from presigned URLs. Without `keys`, which only sign those, the chain's are used.
        """
        with self.translated():
            client = self._session.create_client(
                "s3",
                endpoint_url=location.endpoint,
                region_name=region,
                aws_access_key_id=keys.access_key if keys else None,
                aws_secret_access_key=keys.secret_key if keys else None,
                config=_config(path_style=location.force_path_style, anonymous=location.anonymous),
            )
            bucket_url, scope = _url_and_scope(client, "list_objects_v2", Bucket=location.bucket)
            object_url, _ = _url_and_scope(client, "get_object", Bucket=location.bucket, Key=f"{location.prefix}x")
        service = "s3"
        if scope:
            # A credential is <access key>/<date>/<region>/<service>/aws4_request, and an access key may have slashes.
            _, _, region, service, _ = scope.rsplit("/", 4)
        return bucket_url, object_url.removesuffix("x"), region, service

    def _configured(self, name: str) -> str | None:
        value = self._session.get_config_variable(name)
        return str(value) if value else None

    @property
    def _session(self) -> botocore.session.Session:
        session = self._known_session
        if session is None:
            session = self._known_session = botocore.session.Session()
            session.set_default_client_config(Config(connect_timeout=self._timeout_s, read_timeout=self._timeout_s))
            session.register_component("data_loader", _shared_loader())
        return session

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn botocore's errors in this block into errors of ours: all it asks are the services of the chain."""
        try:
            yield
        except exceptions.ClientError as exc:
            error, meta = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
            code = str(error.get("Code", ""))
            if code in STALE_CREDENTIALS:
                self._forget()
            raise error_from_answer(
                meta.get("HTTPStatusCode", 0),
                "" if code.isdecimal() else code,  # a number is the status of an answer without an S3 error
                self._redacted(str(error.get("Message", ""))),
                meta.get("HTTPHeaders", {}),
                _CREDENTIALS_SERVICE,
            ) from exc
        except _CREDENTIAL_ERRORS as exc:
            raise StoragePermissionError(f"no credentials: {exc}", hint=CREDENTIALS_HINT) from exc
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as exc:
            kind = StorageError if isinstance(exc, exceptions.SSLError) else TransientStorageError
            raise kind(f"{_CREDENTIALS_SERVICE} does not answer: {self._redacted(str(exc))}") from exc
        except ResponseParserError as exc:  # not a BotoCoreError
            message = f"{_CREDENTIALS_SERVICE} gave no answer of its kind: {self._redacted(str(exc))[:MESSAGE_LIMIT]}"
            raise StorageError(message, hint=CREDENTIALS_HINT) from exc
        except exceptions.BotoCoreError as exc:
            raise StorageError(f"cannot ask {self._server}: {self._redacted(str(exc))}") from exc


class ChainCredentials:
    """Credentials of the chain, which refresh themselves."""

    def __init__(self, found: Any, chain: Chain) -> None:
        self._found = found
        self._chain = chain

    def current(self) -> Credentials:
        """Those to sign with now. May ask a service. Raises StorageError."""
        with self._chain.translated():
            try:
                found = self._found.get_frozen_credentials()
            except RuntimeError as exc:  # botocore's error for new credentials that have expired
                raise StoragePermissionError(f"no credentials: {exc}", hint=CREDENTIALS_HINT) from exc
        return Credentials(found.access_key, found.secret_key, found.token)

    def expire_within(self, seconds: int) -> bool:
        """Whether they end so soon."""
        return isinstance(self._found, RefreshableCredentials) and bool(self._found.refresh_needed(seconds))


def _url_and_scope(client: Any, operation: str, **parameters: str) -> tuple[str, str]:
    url, _, query = client.generate_presigned_url(operation, Params=parameters).partition("?")
    return url, next(iter(parse_qs(query).get("X-Amz-Credential", ())), "")


def _config(*, path_style: bool, anonymous: bool) -> Config:
    return Config(
        signature_version=UNSIGNED if anonymous else "s3v4",
        # "auto" would presign for the global endpoint, which answers for new buckets with a redirect.
        s3={"addressing_style": "path" if path_style else "virtual"},
    )


@functools.cache
def _shared_loader() -> Any:
    """botocore's description of S3, read once per process: it makes the second client five times as fast."""
    return botocore.session.Session().get_component("data_loader")

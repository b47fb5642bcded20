"""The section `replica` of a configuration: a place with its settings becomes a URL and keys.

Keys are Litestream's (`ReplicaConfig` and `ReplicaSettings` of its cmd/litestream/main.go). Settings given for the
whole file are those of each replica that has none of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote, urlencode, urlsplit

from litevfs.errors import LitevfsError
from litevfs.replicate.config.document import Section
from litevfs.replicate.config.model import Place
from litevfs.texts import expand_home

_NOT_NEEDED = "nothing to set here: requests are always made so that servers take them"
_NOT_DONE = {
    "validation-interval": "not done; --verify-interval compares the replica with the database",
    "max-sync-ltx-files": "not done: all files that wait are uploaded at each sync",
    "sign-payload": _NOT_NEEDED,
    "sign-accept-encoding": _NOT_NEEDED,
    "require-content-md5": _NOT_NEEDED,
    "put-object-content-md5": _NOT_NEEDED,
    "part-size": "not done: uploads go in parts of 32 MiB",
    "concurrency": "not done: the parts of an upload follow one another",
    "concurrent-writes": "not done: the parts of an upload follow one another",
    "max-reconnects": "not done: each call makes a broken connection again",
    "reconnect-wait": "not done: each call makes a broken connection again",
    "timeout": "not done; --read-timeout bounds each wait",
}
_REFUSED = {
    "age": "not done here nor by Litestream 0.5: files would be stored without encryption",
    "account-key": "keys of Azure come from LITESTREAM_AZURE_ACCOUNT_KEY",
    "sas-token": "tokens of Azure come from LITESTREAM_AZURE_SAS_TOKEN",
    "password": "passwords come from LITEVFS_SFTP_PASSWORD or LITEVFS_NATS_PASSWORD",
    "webdav-password": "the password comes from LITEVFS_WEBDAV_PASSWORD",
    "token": "the token comes from LITEVFS_NATS_TOKEN",
    "jwt": "not done; creds: names a file with JWT and seed",
    "seed": "not done; creds: names a file with JWT and seed",
    "nkey": "not done; creds: names a file with JWT and seed",
    "root-cas": "not done: certificates are checked against those of the system",
    "client-cert": "not done: there are no certificates of clients",
    "client-key": "not done: there are no certificates of clients",
}
_S3_PARAMETERS = {
    "endpoint": "endpoint",
    "region": "region",
    "force-path-style": "forcePathStyle",
    "skip-verify": "skipVerify",
    "storage-class": "storageClass",
    "sse-customer-algorithm": "sseCustomerAlgorithm",
    "sse-customer-key": "sseCustomerKey",
    "sse-kms-key-id": "sseKmsKeyId",
}
_TEXTS = (
    *_S3_PARAMETERS,
    "access-key-id",
    "secret-access-key",
    "bucket",
    "sse-customer-key-path",
    "account-name",
    "host",
    "user",
    "key-path",
    "host-key",
    "webdav-url",
    "webdav-username",
    "creds",
    "username",
    "tls",
)


class _WrongError(Exception):
    def __init__(self, key: str, what: str) -> None:
        self.key, self.what = key, what


def read_settings(section: Section) -> dict[str, str]:
    """The settings that a section has of its own, by Litestream's keys; notes those that are not done."""
    for key in _NOT_DONE:
        section.warn(key, _NOT_DONE[key])
    section.boolean("auto-recover")  # always so: a replica with lost files gets a snapshot
    for key, why in _REFUSED.items():
        if section.text(key) if key not in ("age", "root-cas") else _has(section, key):
            section.mistake(key, why)
    found = {key: section.text(key) for key in _TEXTS}
    return {key: value for key, value in found.items() if value}


def _has(section: Section, key: str) -> bool:
    section.section(key) if key == "age" else section.sections(key)
    return key in section


def read_place(section: Section, defaults: dict[str, str]) -> Place | None:
    """The place of one section `replica`; None when it has mistakes, which are noted."""
    own = read_settings(section)
    url, path, kind = section.text("url"), section.text("path"), section.text("type")
    section.warn("name", "not needed: a replica has no name any more")
    try:
        return _place(section, url, path, kind, own, defaults | own)
    except _WrongError as exc:
        section.mistake(exc.key, exc.what)
    except LitevfsError as exc:
        section.mistake("url" if url else "path" if path else "type", str(exc))
    return None


def _place(
    section: Section, url: str | None, path: str | None, kind: str | None, own: dict[str, str], settings: dict[str, str]
) -> Place:
    if path is not None and "://" in path:
        raise _WrongError("path", "this is a URL; write it as url:")
    if url and path:
        raise _WrongError("path", "given beside url, which has a path of its own")
    named = kind or (urlsplit(url).scheme if url else None) or ("s3" if "bucket" in own else "file")
    make = _MAKERS.get({"webdavs": "webdav", "az": "abs"}.get(named, named))
    if make is None:
        raise _WrongError("type" if kind else "url", f"no such kind of replica: {named!r}; one of {', '.join(_MAKERS)}")
    keys = settings if named in ("s3", "oss") else {}
    place = Place(make(section, url, path, settings), keys.get("access-key-id"), keys.get("secret-access-key"))
    place.open().close()  # every part of the URL is checked
    return place


def _file(section: Section, url: str | None, path: str | None, settings: dict[str, str]) -> str:
    if url:
        return url
    if not path:
        raise _WrongError("path", f"{section.name} needs a path, or a url")
    return str(expand_home(path).absolute())


def _s3(section: Section, url: str | None, path: str | None, settings: dict[str, str]) -> str:
    parameters = {_S3_PARAMETERS[key]: settings[key] for key in _S3_PARAMETERS if key in settings}
    key_path = settings.get("sse-customer-key-path")
    if key_path:
        try:
            parameters["sseCustomerKey"] = expand_home(key_path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as exc:
            raise _WrongError("sse-customer-key-path", f"cannot be read: {exc}") from exc
    if ("access-key-id" in settings) != ("secret-access-key" in settings):
        raise _WrongError("access-key-id", "access-key-id and secret-access-key belong together")
    return _in_bucket("oss" if section.text("type") == "oss" else "s3", section, url, path, settings, parameters)


def _gs(section: Section, url: str | None, path: str | None, settings: dict[str, str]) -> str:
    return _in_bucket("gs", section, url, path, settings, {})


def _abs(section: Section, url: str | None, path: str | None, settings: dict[str, str]) -> str:
    parameters = {"endpoint": settings["endpoint"]} if "endpoint" in settings else {}
    account = f"{settings['account-name']}@" if "account-name" in settings else ""
    return _in_bucket("abs", section, url, path, settings, parameters, user=account)


def _nats(section: Section, url: str | None, path: str | None, settings: dict[str, str]) -> str:
    if not url:
        raise _WrongError("url", "a replica in NATS needs a url: nats://host/bucket")
    parts = urlsplit(url)
    if settings.get("username") and "@" not in parts.netloc:
        parts = parts._replace(netloc=f"{quote(settings['username'])}@{parts.netloc}")
    if settings.get("bucket") and not parts.path.strip("/"):
        parts = parts._replace(path=f"/{settings['bucket']}")
    return _with(parts.geturl(), {key: settings[key] for key in ("creds", "tls") if key in settings})


def _in_bucket(
    scheme: str,
    section: Section,
    url: str | None,
    path: str | None,
    settings: dict[str, str],
    parameters: dict[str, str],
    user: str = "",
) -> str:
    if url is None:
        bucket = settings.get("bucket")
        if not bucket:
            raise _WrongError("bucket", f"a replica of type {scheme} needs a bucket, or a url")
        url = f"{scheme}://{user}{bucket}" + (f"/{quote(path.strip('/'))}" if path else "")
    return _with(url, parameters)


def _sftp(section: Section, url: str | None, path: str | None, settings: dict[str, str]) -> str:
    parameters = {
        name: settings[key] for key, name in (("key-path", "keyPath"), ("host-key", "hostKey")) if key in settings
    }
    if url is None:
        if "host" not in settings:
            raise _WrongError("host", "a replica of type sftp needs a host, or a url")
        if path and path.startswith("/"):
            parameters["absolute"] = "true"
        user = f"{quote(settings['user'])}@" if "user" in settings else ""
        url = f"sftp://{user}{settings['host']}/{quote((path or '').strip('/'))}"
    return _with(url, parameters)


def _webdav(section: Section, url: str | None, path: str | None, settings: dict[str, str]) -> str:
    if url is None:
        if "webdav-url" not in settings:
            raise _WrongError("webdav-url", "a replica of type webdav needs a webdav-url, or a url")
        parts = urlsplit(settings["webdav-url"])
        user = f"{quote(settings['webdav-username'])}@" if "webdav-username" in settings else ""
        scheme = "webdavs" if parts.scheme == "https" else "webdav"
        url = f"{scheme}://{user}{parts.netloc}{parts.path.rstrip('/')}/{quote((path or '').strip('/'))}"
    return url


def _with(url: str, parameters: dict[str, str]) -> str:
    if not parameters:
        return url
    query = urlsplit(url).query
    names = [part.partition("=")[0] for part in query.split("&")]
    added = urlencode({name: value for name, value in parameters.items() if name not in names})
    return urlsplit(url)._replace(query="&".join(filter(None, (query, added)))).geturl()


Maker = Callable[[Section, str | None, str | None, dict[str, str]], str]
_MAKERS: dict[str, Maker] = {
    "file": _file,
    "s3": _s3,
    "gs": _gs,
    "abs": _abs,
    "sftp": _sftp,
    "webdav": _webdav,
    "nats": _nats,
    "oss": _s3,
}

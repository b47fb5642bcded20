"""S3 listings: query and XML answer. Pure; knows no client.

Sources: Amazon S3 API reference, ListObjectsV2 and ListObjects. Servers differ in dates, in whether keys are encoded,
in the name of the next page's token, and in whether they know the second version at all; this module accepts every form
that has one meaning only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote, unquote_plus
from xml.etree import ElementTree

from litevfs.errors import StorageError
from litevfs.replica_clients.http.answers import plain_etag

_MAX_EMPTY_PAGES = 100  # S3 may send one; a server that sends only those must not keep us for ever
_FULL_PAGE = 1000  # keys of a full page, for servers that do not say whether there are more
_ROOTS = {"ListBucketResult", "ListBucketV2Result", "ListObjectsResult", "ListObjectsV2Result"}
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?) ([+-]\d{4})( [A-Z]+)?")  # Go's time.String
_EPOCH = re.compile(r"\d{9,13}(?:\.\d+)?")
_MS_FROM = 1e11  # a number above it counts milliseconds

Continuation = tuple[tuple[str, str], ...]
"""Parameters of the query that asks for the next page."""


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One object of a listing."""

    key: str
    size: int  # bytes
    modified_ms: int  # milliseconds since the Unix epoch
    etag: str  # without quotes


@dataclass(frozen=True, slots=True)
class ListPage:
    """One answer, with the token of the next one (None after the last)."""

    objects: list[ListedObject]
    next_token: Continuation | None
    is_v1: bool = False  # the server answered as to ListObjects
    folders: tuple[str, ...] = ()  # common prefixes, if a delimiter was asked for


def list_query(
    prefix: str,
    start_after: str | None,
    token: Continuation | None,
    *,
    by_marker: bool = False,
    delimiter: str | None = None,
) -> str:
    """The query string, in the order and encoding that a signature needs; `by_marker` for ListObjects."""
    parameters = {"encoding-type": "url", "prefix": prefix}
    if delimiter is not None:
        parameters["delimiter"] = delimiter
    if not by_marker:
        parameters["list-type"] = "2"
    if start_after is not None:
        parameters["marker" if by_marker else "start-after"] = start_after
    parameters |= dict(token or ())
    return "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(parameters.items()))


def parse_list_page(body: bytes, endpoint: str, prefix: str = "") -> ListPage:
    """The page in `body`. Raises StorageError if that is not the XML of a listing (but a proxy's page, for example).

    All keys start with `prefix`, which shows whether the server encodes them.
    """
    try:
        root = ElementTree.fromstring(body.strip())
        if root.tag.rpartition("}")[2] not in _ROOTS:
            raise ValueError(f"<{root.tag}>")
        is_encoded = _text(root, "EncodingType").lower() == "url"
        objects = [_object(element, is_encoded, prefix) for element in root.iterfind("{*}Contents")]
        is_v1 = root.find("{*}Marker") is not None and root.find("{*}KeyCount") is None
        folders = (_text(element, "Prefix") for element in root.iterfind("{*}CommonPrefixes"))
        names = tuple(_decoded(folder, is_encoded, prefix) for folder in folders)
        return ListPage(objects, _next(root, objects, is_encoded, prefix), is_v1, names)
    except (ElementTree.ParseError, ValueError, OverflowError) as exc:
        raise StorageError(
            f"{endpoint} answered something that is no S3 listing: {exc}",
            hint="is this the endpoint of an S3 server, and no proxy in between?",
        ) from exc


def _next(root: ElementTree.Element, objects: list[ListedObject], is_encoded: bool, prefix: str) -> Continuation | None:
    """The token of the next page; the last key if the server gives no token."""
    is_truncated = _text(root, "IsTruncated").lower()
    token = _text(root, "NextContinuationToken")
    if is_truncated not in ("true", "1") and (is_truncated or not (token or len(objects) >= _FULL_PAGE)):
        return None
    if token:
        return (("continuation-token", token),)
    marker = _text(root, "NextMarker")
    after = _decoded(marker, is_encoded, prefix) if marker else objects[-1].key if objects else ""
    if not after:
        raise ValueError("truncated, and no continuation token")
    return (("marker", after), ("start-after", after))


def all_pages(fetch: Callable[[Continuation | None], ListPage], endpoint: str) -> list[ListedObject]:
    """The objects of all pages; `fetch` gets the token of a page, None first.

    A server (or a cache in front of it) that repeats a page would make this loop endless: every page has to have a
    new token and, if it has keys, new ones. Raises StorageError otherwise.
    """
    found: dict[str, ListedObject] = {}
    tokens: set[Continuation] = set()
    empty_pages = 0
    page = fetch(None)
    while True:
        fresh = [listed for listed in page.objects if listed.key not in found]
        if page.objects and not fresh:
            raise _stuck(endpoint, f"{page.objects[0].key!r} comes again")
        found |= {listed.key: listed for listed in fresh}
        if page.next_token is None:
            return list(found.values())
        empty_pages += not page.objects
        if page.next_token in tokens or empty_pages > _MAX_EMPTY_PAGES:
            raise _stuck(endpoint, "it repeats a continuation token or gives pages without keys")
        tokens.add(page.next_token)
        page = fetch(page.next_token)


def _stuck(endpoint: str, what: str) -> StorageError:
    return StorageError(
        f"the listing of {endpoint} does not advance: {what}",
        hint="a cache or proxy before the server may repeat old answers",
    )


def _object(element: ElementTree.Element, is_encoded: bool, prefix: str) -> ListedObject:
    return ListedObject(
        key=_decoded(_text(element, "Key"), is_encoded, prefix),
        size=_size(_text(element, "Size")),
        modified_ms=_modified_ms(_text(element, "LastModified")),
        etag=plain_etag(_text(element, "ETag")),
    )


def _decoded(key: str, is_encoded: bool, prefix: str) -> str:
    """The real key: the decoding that starts with the requested prefix; tries the server's declared encoding first."""
    readings = [unquote_plus(key), unquote(key), key] if is_encoded else [key, unquote(key), unquote_plus(key)]
    for reading in readings:
        if reading.startswith(prefix):
            return reading
        if reading.startswith(f"/{prefix}"):
            return reading[1:]
    return readings[0]


def _size(text: str) -> int:
    """A size in bytes; some servers write it with a fraction of zero."""
    whole, _, fraction = text.strip().partition(".")
    if not whole.isascii() or not whole.isdecimal() or fraction.strip("0"):
        raise ValueError(f"size {text!r}")
    return int(whole)


def _modified_ms(text: str) -> int:
    """A time as ISO 8601, as in HTTP's headers, as Go prints it, or as a number; in UTC where it names no zone."""
    text = text.strip()
    if _EPOCH.fullmatch(text):
        return round(float(text) * (1 if float(text) > _MS_FROM else 1000))
    go_time = _GO_TIME.fullmatch(text)
    try:
        moment = datetime.fromisoformat(f"{go_time[1]}T{go_time[2]}{go_time[3]}" if go_time else text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            raise ValueError(f"date {text!r}") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""

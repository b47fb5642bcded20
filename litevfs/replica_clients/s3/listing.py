"""S3 listings: query and XML answer. Pure; knows no client. Source: Amazon S3 API reference, ListObjectsV2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from litevfs.errors import StorageError

_MAX_EMPTY_PAGES = 100  # S3 may give one; a server that gives nothing else must not keep us


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
    next_token: str | None


def list_query(prefix: str, start_after: str | None, token: str | None) -> str:
    """The query string, in the order and encoding that a signature needs."""
    parameters = {"encoding-type": "url", "list-type": "2", "prefix": prefix}
    if start_after is not None:
        parameters["start-after"] = start_after
    if token is not None:
        parameters["continuation-token"] = token
    return "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(parameters.items()))


def parse_list_page(body: bytes, endpoint: str) -> ListPage:
    """Raises StorageError when `body` is not the XML of a listing (a proxy's page, say)."""
    try:
        root = ElementTree.fromstring(body)
        if root.tag.rpartition("}")[2] != "ListBucketResult":
            raise ValueError(f"<{root.tag}>")
        decode = unquote_plus if _text(root, "EncodingType") == "url" else str
        objects = [_object(element, decode) for element in root.iterfind("{*}Contents")]
        truncated = _text(root, "IsTruncated").lower() == "true"
        token = _text(root, "NextContinuationToken")
        if truncated and not token:
            raise ValueError("truncated, and no continuation token")
    except (ElementTree.ParseError, ValueError) as exc:
        raise StorageError(
            f"{endpoint} answered something that is no S3 listing: {exc}",
            hint="is this the endpoint of an S3 server, and no proxy in between?",
        ) from exc
    return ListPage(objects, token if truncated else None)


def all_pages(fetch: Callable[[str | None], ListPage], endpoint: str) -> list[ListedObject]:
    """The objects of all pages; `fetch` gets a token, None first.

    A server (or a cache before it) that repeats a page would keep us here for ever: every page has to bring a new
    token and later keys. Raises StorageError otherwise.
    """
    found: list[ListedObject] = []
    tokens: set[str] = set()
    empty_pages = 0
    page = fetch(None)
    while True:
        if found and page.objects and page.objects[0].key <= found[-1].key:
            raise _stuck(endpoint, f"{page.objects[0].key!r} comes after {found[-1].key!r}")
        found += page.objects
        if page.next_token is None:
            return found
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


def _object(element: ElementTree.Element, decode: Callable[[str], str]) -> ListedObject:
    modified = datetime.fromisoformat(_text(element, "LastModified"))
    return ListedObject(
        key=decode(_text(element, "Key")),
        size=int(_text(element, "Size")),
        modified_ms=round(modified.timestamp() * 1000),
        etag=plain_etag(_text(element, "ETag")),
    )


def plain_etag(text: str) -> str:
    """An ETag without its quotes and weakness mark, which proxies add and drop."""
    return text.removeprefix("W/").strip('"')


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""

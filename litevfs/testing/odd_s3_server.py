"""An S3 server of one bucket in memory that answers as an `Oddity` says. Real HTTP; checks every signature by itself.

It supports what replicas need: listings, reads of ranges, writes in one request, conditions, deletes.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from litevfs.testing.s3_oddities import Oddity

BUCKET = "bucket"
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "ODDACCESSKEY", "an/odd+secret", "an-odd-token"
PAGE_KEYS = 2
"""Keys on a page of a listing."""
_SKEW_S = 900  # that S3 allows
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]+)"
)
_XMLNS = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/", "other": "http://doc.s3.amazonaws.com/2006-03-01"}


@dataclass(slots=True)
class _Object:
    data: bytes
    modified_s: float


@dataclass(slots=True)
class _Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Request:
    method: str
    path: str  # as sent
    query: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def key(self) -> str:
        return unquote(self.path).removeprefix(f"/{BUCKET}").removeprefix("/")

    def parameter(self, name: str) -> str | None:
        return parse_qs(self.query, keep_blank_values=True).get(name, [None])[0]


class OddS3Server:
    """One bucket, `BUCKET`, whose server has an oddity. `requests` are (method, path with query, headers)."""

    def __init__(self, oddity: Oddity) -> None:
        self.oddity = oddity
        self.objects: dict[str, _Object] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.endpoint = ""  # the address that clients get
        self.home = ""  # the address that a redirect leads to
        self.keys = {ACCESS_KEY: (SECRET_KEY, SESSION_TOKEN)}  # valid ones: secret key, session token
        self.expired: set[str] = set()  # access keys that were valid once
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes) -> None:
        """Store an object directly, without oddities."""
        self.objects[key] = _Object(data, time.time())

    # --- one request --------------------------------------------------------------------------------------------------

    def answer(self, request: _Request, *, is_home: bool) -> _Answer:
        """The answer to a request that came to `home`, or else to `endpoint`."""
        with self._lock:
            self.requests.append((request.method, f"{request.path}?{request.query}", request.headers))
            if self.oddity.redirects and not is_home:
                where = f"{self.home}{request.path}" + (f"?{request.query}" if request.query else "")
                return _Answer(self.oddity.redirects, headers={"Location": where})
            return self._refusal(request) or self._do(request)

    def _refusal(self, request: _Request) -> _Answer | None:
        """The answer that refuses the request, or None."""
        odd = self.oddity
        if odd.refuses_expect and "expect" in request.headers:
            return self._error(417, "ExpectationFailed")
        if odd.refuses_checksums and any(name.startswith(("x-amz-checksum", "x-amz-sdk")) for name in request.headers):
            return self._error(400, "InvalidRequest")
        if odd.wants_payer and request.headers.get("x-amz-request-payer") != "requester":
            return self._error(403, "AccessDenied")
        if odd.is_public:
            return self._error(403, "InvalidAccessKeyId") if "authorization" in request.headers else None
        return self._signature_refusal(request)

    def _signature_refusal(self, request: _Request) -> _Answer | None:
        match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
        if match is not None and match[1] in self.expired:
            return self._error(400, "ExpiredToken")
        secret, token = self.keys.get(match[1] if match else "", ("", None))
        if match is None or not secret or request.headers.get("x-amz-security-token") != token:
            return self._error(403, "AccessDenied")
        if match[3] != self.oddity.region:
            header = {"x-amz-bucket-region": self.oddity.region} if self.oddity.says_region else {}
            more = f"<Region>{self.oddity.region}</Region>"
            return self._error(400, "AuthorizationHeaderMalformed", more=more, headers=header)
        sent = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if abs(sent - self.now_s()) > _SKEW_S:
            return self._error(403, "RequestTimeTooSkewed")
        headers = dict(request.headers)
        if self.oddity.rewrites_headers:
            headers |= {"accept-encoding": "gzip, br", "user-agent": "a proxy"}
        if _signature(request, headers, match, secret) != match[5]:
            return self._error(403, "SignatureDoesNotMatch")
        if hashlib.sha256(request.body).hexdigest() != request.headers["x-amz-content-sha256"]:
            return self._error(400, "XAmzContentSHA256Mismatch")
        return None

    def now_s(self) -> float:
        """The server's time, seconds since the epoch."""
        return time.time() + self.oddity.clock_s

    def _do(self, request: _Request) -> _Answer:
        if not request.key:
            return self._delete_batch(request) if request.method == "POST" else self._list(request)
        method = {"GET": self._get, "PUT": self._put, "DELETE": self._delete}.get(request.method)
        return method(request) if method else self._error(405, "MethodNotAllowed")

    def _get(self, request: _Request) -> _Answer:
        found = self.objects.get(request.key)
        if found is None:
            return self._error(404, "NoSuchKey")
        headers = self._etag(found)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return _Answer(200, found.data, headers)
        total, first = len(found.data), int(wanted[1])
        if first >= total:
            return self._error(416, "InvalidRange")
        last = min(int(wanted[2] or total), total - 1)
        headers["Content-Range"] = {
            "whole": f"bytes {first}-{last}/{total}",
            "unknown-total": f"bytes {first}-{last}/*",
            "no-total": f"bytes {first}-{last}",
            "equals-sign": f"bytes={first}-{last}/{total}",
        }[self.oddity.content_range]
        return _Answer(206, found.data[first : last + 1], headers)

    def _put(self, request: _Request) -> _Answer:
        if self.oddity.wants_md5 and "content-md5" not in request.headers:
            return self._error(400, "InvalidRequest")
        condition = self.oddity.condition
        if "if-none-match" in request.headers:
            if condition in ("400", "405", "501"):
                return self._error(int(condition), {"400": "InvalidArgument"}.get(condition, "NotImplemented"))
            if condition != "ignored" and request.key in self.objects:
                if condition == "kept":
                    return self._error(412, "PreconditionFailed")
                return _Answer(int(condition[:3]))
        self.put(request.key, request.body)
        return _Answer(self.oddity.put_status, headers=self._etag(self.objects[request.key]))

    def _delete(self, request: _Request) -> _Answer:
        self.objects.pop(request.key, None)
        return _Answer(self.oddity.delete_status)

    def _delete_batch(self, request: _Request) -> _Answer:
        way = self.oddity.batch_delete
        if way.isdecimal():
            return self._error(int(way), "MethodNotAllowed" if way == "405" else "NotImplemented")
        if "content-md5" not in request.headers or (way == "only-md5" and "x-amz-sdk-checksum" in str(request.headers)):
            return self._error(400, "InvalidRequest")
        for key in re.findall(r"<Key>([^<]*)</Key>", request.body.decode()):
            self.objects.pop(unescape(key), None)
        inner = "<Error/>" if way == "empty-error" else ""
        return _Answer(200, b"" if way == "empty-body" else self._xml("DeleteResult", inner))

    # --- listings -----------------------------------------------------------------------------------------------------

    def _list(self, request: _Request) -> _Answer:
        odd, is_v2 = self.oddity, request.parameter("list-type") == "2"
        if odd.paging == "v1-only" and is_v2:
            return self._error(400, "InvalidArgument")
        prefix, after = request.parameter("prefix") or "", self._after(request, is_v2=is_v2)
        is_inclusive = odd.paging == "v1-inclusive"
        keys = sorted(
            key for key in self.objects if key.startswith(prefix) and (key > after or (is_inclusive and key == after))
        )
        page, is_truncated = keys[:PAGE_KEYS], len(keys) > PAGE_KEYS
        said = "" if odd.paging == "unsaid-end" else f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>"
        if odd.keys in ("encoded", "plain-but-said-encoded"):
            said += "<EncodingType>url</EncodingType>"
        said += self._next(page[-1], is_v2=is_v2) if is_truncated else ""
        said += "<Marker/>" if odd.paging.startswith("v1") else f"<KeyCount>{len(page)}</KeyCount>"
        return _Answer(200, self._xml("ListBucketResult", said + "".join(map(self._entry, page))))

    def _after(self, request: _Request, *, is_v2: bool) -> str:
        if self.oddity.paging.startswith("v1"):
            return request.parameter("marker") or ""
        token = request.parameter("continuation-token")
        return bytes.fromhex(token.rpartition("+/=")[2]).decode() if token else request.parameter("start-after") or ""

    def _next(self, last: str, *, is_v2: bool) -> str:
        token = last.encode().hex()
        return {
            "v1": "",
            "v1-only": "",
            "v1-inclusive": f"<NextMarker>{escape(last)}</NextMarker>",
            "no-token": "",
            "empty-token": "<NextContinuationToken/>",
            "long-token": f"<NextContinuationToken>&amp;%? +/={token}</NextContinuationToken>",
        }.get(self.oddity.paging, f"<NextContinuationToken>{token}</NextContinuationToken>")

    def _entry(self, key: str) -> str:
        found, odd = self.objects[key], self.oddity
        shown = quote(key, safe="/") if odd.keys in ("encoded", "encoded-unsaid") else key
        shown = f"/{shown}" if odd.keys == "with-slash" else shown
        size = f"{len(found.data)}.0" if odd.float_sizes else str(len(found.data))
        etag = escape(self._etag(found).get("ETag", ""))
        modified = _date(found.modified_s, odd.dates)
        return (
            f"<Contents><Key>{escape(shown)}</Key><LastModified>{modified}</LastModified>"
            f"<ETag>{etag}</ETag><Size>{size}</Size></Contents>"
        )

    # --- forms --------------------------------------------------------------------------------------------------------

    def _etag(self, found: _Object) -> dict[str, str]:
        md5 = hashlib.md5(found.data, usedforsecurity=False).hexdigest()
        form = {"quoted": f'"{md5}"', "bare": md5, "weak": f'W/"{md5}"', "none": ""}[self.oddity.etag]
        return {"ETag": form} if form else {}

    def _xml(self, root: str, inner: str) -> bytes:
        namespace = self.oddity.namespace
        if namespace == "prefixed":
            inner = re.sub(r"<(/?)(\w)", r"<\1a:\2", inner)
            text = f'<a:{root} xmlns:a="{_XMLNS["s3"]}">{inner}</a:{root}>'
        else:
            xmlns = f' xmlns="{_XMLNS[namespace]}"' if namespace in _XMLNS else ""
            text = f"<{root}{xmlns}>{inner}</{root}>"
        blanks = "\n  \n" if self.oddity.blank_first else ""
        return f"{blanks}<?xml version='1.0' encoding='UTF-8'?>{text}".encode()

    def _error(self, status: int, code: str, *, more: str = "", headers: dict[str, str] | None = None) -> _Answer:
        inner = f"<Code>{code}</Code><Message>{code} it is</Message>{more}"
        bodies = {
            "xml": f"<Error>{inner}</Error>",
            "prefixed-xml": "<a:Error xmlns:a='x'>" + re.sub(r"<(/?)(\w)", r"<\1a:\2", inner) + "</a:Error>",
            "json": f'{{"code": "{code}", "message": "{code} it is"}}',
            "html": f"<html><title>{status}</title></html>",
            "none": "",
        }
        return _Answer(status, bodies[self.oddity.errors].encode(), headers or {})


def _signature(request: _Request, headers: dict[str, str], match: re.Match[str], secret: str) -> str:
    """Signature version 4, by its specification and the standard library alone."""
    names = match[4].split(";")
    signed = "".join(f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in names)
    query = "&".join(sorted(request.query.split("&"))) if request.query else ""
    parts = [request.method, request.path, query, signed, match[4], headers.get("x-amz-content-sha256", "")]
    scope = f"{match[2]}/{match[3]}/s3/aws4_request"
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers.get("x-amz-date", ""), scope, digest])
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


def _date(seconds: float, form: str) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    texts = {
        "iso": moment.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "iso-nanoseconds": moment.strftime("%Y-%m-%dT%H:%M:%S.%f000Z"),
        "iso-no-zone": moment.strftime("%Y-%m-%dT%H:%M:%S"),
        "rfc1123": formatdate(seconds, usegmt=True),
        "go": moment.strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC"),
        "epoch": str(int(seconds)),
        "epoch-ms": str(int(seconds * 1000)),
    }
    return texts[form]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reads requests and writes answers, for the server and the address that a subclass names."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    disable_nagle_algorithm = True
    odd: OddS3Server
    is_home = True

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        request = _Request(self.command, parts.path, parts.query, headers, body)
        self._write(self.odd.answer(request, is_home=self.is_home))

    do_GET = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815 - as the base class calls them

    def _write(self, answer: _Answer) -> None:
        oddity = self.odd.oddity
        headers = dict(answer.headers)
        if not oddity.no_date:
            headers["Date"] = formatdate(self.odd.now_s(), usegmt=True)
        body = answer.body
        if oddity.zips and body and ((answer.status != 206 and b"<?xml" in body) or answer.status >= 400):
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        is_chunked = oddity.chunked and bool(body)
        headers |= {"Transfer-Encoding": "chunked"} if is_chunked else {"Content-Length": str(len(body))}
        if oddity.closes:
            headers["Connection"] = "close"
            self.close_connection = True
        if answer.status in (204, 304):
            headers.pop("Content-Length", None)
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name.lower() if oddity.lower_case else name, value)
        self.end_headers()
        if is_chunked:
            half = len(body) // 2
            pieces = [piece for piece in (body[:half], body[half:]) if piece]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def running_odd_s3_server(oddity: Oddity) -> Iterator[OddS3Server]:
    """A server with `oddity` on a loopback port, until the block ends."""
    server = OddS3Server(oddity)
    listeners = []
    for is_home in (True, False):
        handler = type("Handler", (_Handler,), {"odd": server, "is_home": is_home})
        listeners.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        listeners[-1].daemon_threads = True
    server.home, server.endpoint = (f"http://127.0.0.1:{listener.server_address[1]}" for listener in listeners)
    threads = [threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True) for listener in listeners]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        for listener, thread in zip(listeners, threads, strict=True):
            listener.shutdown()
            listener.server_close()
            thread.join()

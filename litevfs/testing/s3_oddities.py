"""Ways in which servers that speak S3 differ from Amazon's, as users of such servers have reported them: one table.

`OddS3Server` applies them. A client has to work with each of them, or raise the right error for those it cannot work
with. Each oddity names where it was seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DateForm = Literal["iso", "iso-nanoseconds", "iso-no-zone", "rfc1123", "go", "epoch", "epoch-ms"]
Keys = Literal["encoded", "plain", "encoded-unsaid", "plain-but-said-encoded", "with-slash"]
Paging = Literal["token", "v1", "v1-inclusive", "v1-only", "no-token", "unsaid-end", "empty-token", "long-token"]
Errors = Literal["xml", "prefixed-xml", "json", "html", "none"]
Etag = Literal["quoted", "bare", "weak", "none"]
Namespace = Literal["s3", "none", "prefixed", "other"]
RangeForm = Literal["whole", "unknown-total", "no-total", "equals-sign"]
BatchDelete = Literal["kept", "501", "400", "405", "404", "only-md5", "empty-error", "empty-body"]
Condition = Literal["kept", "ignored", "400", "405", "501", "304", "412-without-body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """How a server differs; the defaults are Amazon's ways."""

    name: str
    seen: str  # where it was reported
    rewrites_headers: bool = False  # a proxy changes Accept-Encoding and User-Agent before the signature is checked
    condition: Condition = "kept"
    wants_md5: bool = False  # a PUT without Content-MD5 is refused (Object Lock)
    refuses_checksums: bool = False  # x-amz-checksum-* and x-amz-sdk-* headers are refused
    batch_delete: BatchDelete = "kept"
    refuses_expect: bool = False  # a request with `Expect` is answered with 417
    redirects: int = 0  # every request to the first address is answered with this status and a Location
    says_region: bool = True  # an answer about the wrong region names the bucket's in a header
    region: str = "us-east-1"
    dates: DateForm = "iso"
    content_range: RangeForm = "whole"
    wants_payer: bool = False  # a request without x-amz-request-payer is denied
    is_public: bool = False  # a signed request is refused: the server knows no keys
    clock_s: float = 0.0  # how far the server's clock is ahead, seconds
    namespace: Namespace = "s3"
    keys: Keys = "encoded"
    paging: Paging = "token"
    errors: Errors = "xml"
    etag: Etag = "quoted"
    lower_case: bool = False  # names of headers
    zips: bool = False  # listings and errors, whatever the request accepts
    chunked: bool = False  # bodies without Content-Length
    closes: bool = False  # the connection after each answer
    float_sizes: bool = False
    blank_first: bool = False  # blanks before the XML
    no_date: bool = False  # no Date header
    put_status: int = 200
    delete_status: int = 204


ODDITIES = (
    Oddity(name="as Amazon's", seen="Amazon S3 API reference"),
    Oddity(name="a proxy rewrites headers", seen="litestream#1386, aws-sdk-go-v2#1816", rewrites_headers=True),
    Oddity(name="conditions: 400", seen="gateways", condition="400"),
    Oddity(name="conditions: 405", seen="gateways", condition="405"),
    Oddity(name="conditions: 501", seen="Amazon S3 API reference", condition="501"),
    Oddity(name="conditions: 304", seen="RFC 9110, 13.1.2, read as for GET", condition="304"),
    Oddity(name="conditions: 412, no body", seen="proxies that drop bodies", condition="412-without-body"),
    Oddity(name="object lock", seen="kopia#711, versitygw#1740", wants_md5=True),
    Oddity(name="no newer checksums", seen="gaul/s3proxy#962, icechunk#2109", refuses_checksums=True),
    Oddity(name="no DeleteObjects: 501", seen="supabase/storage#898, boto3#2293", batch_delete="501"),
    Oddity(name="no DeleteObjects: 400", seen="gateways", batch_delete="400"),
    Oddity(name="no DeleteObjects: 405", seen="gateways", batch_delete="405"),
    Oddity(name="no DeleteObjects: 404", seen="gateways that route by path", batch_delete="404"),
    Oddity(name="DeleteObjects with Content-MD5 only", seen="gaul/s3proxy#962", batch_delete="only-md5"),
    Oddity(name="an empty error for success", seen="pgbackrest#2259", batch_delete="empty-error"),
    Oddity(name="an empty body for success", seen="gateways", batch_delete="empty-body"),
    Oddity(name="no Expect", seen="boto3#743, botocore#3755", refuses_expect=True),
    Oddity(name="307 without a region", seen="aws-sdk-ruby#133, minio-js#374", redirects=307),
    Oddity(name="301 without a region", seen="aws-sdk-ruby#133", redirects=301),
    Oddity(name="308 without a region", seen="gateways", redirects=308),
    Oddity(name="another region", seen="Amazon S3 user guide", region="eu-west-3"),
    Oddity(name="another region, in the body", seen="Ceph", region="eu-west-3", says_region=False),
    Oddity(name="dates of RFC 1123", seen="gateways", dates="rfc1123"),
    Oddity(name="dates with nanoseconds", seen="gateways in Go", dates="iso-nanoseconds"),
    Oddity(name="dates without a zone", seen="gateways", dates="iso-no-zone"),
    Oddity(name="dates as Go prints them", seen="gateways in Go", dates="go"),
    Oddity(name="dates in seconds", seen="gateways", dates="epoch"),
    Oddity(name="dates in milliseconds", seen="gateways", dates="epoch-ms"),
    Oddity(name="an unknown length in Content-Range", seen="RFC 9110, 14.4", content_range="unknown-total"),
    Oddity(name="no length in Content-Range", seen="gateways", content_range="no-total"),
    Oddity(name="Content-Range as a request has it", seen="gateways", content_range="equals-sign"),
    Oddity(name="requester pays", seen="duckdb-httpfs PR#85", wants_payer=True),
    Oddity(name="a public bucket", seen="TileDB PR#3953", is_public=True),
    Oddity(name="a clock ahead", seen="aws-sdk-js-v3#7605", clock_s=7200),
    Oddity(name="a clock behind", seen="aws-sdk-js-v3#7605", clock_s=-86_400),
    Oddity(name="no namespace", seen="many", namespace="none"),
    Oddity(name="a namespace with a prefix", seen="gateways in Java", namespace="prefixed"),
    Oddity(name="another namespace", seen="doc.s3.amazonaws.com, of 2006", namespace="other"),
    Oddity(name="keys as they are", seen="many", keys="plain"),
    Oddity(name="encoded keys, unsaid", seen="gateways", keys="encoded-unsaid"),
    Oddity(name="plain keys, said to be encoded", seen="gateways", keys="plain-but-said-encoded"),
    Oddity(name="keys with a slash", seen="gateways to file systems", keys="with-slash"),
    Oddity(name="the first version of listings", seen="older Ceph, Riak CS", paging="v1"),
    Oddity(name="a marker that is listed again", seen="gateways", paging="v1-inclusive"),
    Oddity(name="the second version is refused", seen="older gateways", paging="v1-only"),
    Oddity(name="truncated without a token", seen="gateways", paging="no-token"),
    Oddity(name="truncated with an empty token", seen="gateways", paging="empty-token"),
    Oddity(name="a token, and not said to be truncated", seen="gateways", paging="unsaid-end"),
    Oddity(name="tokens of all characters", seen="Ceph, MinIO", paging="long-token"),
    Oddity(name="errors with a prefix", seen="gateways in Java", errors="prefixed-xml"),
    Oddity(name="errors in JSON", seen="gateways", errors="json"),
    Oddity(name="errors in HTML", seen="proxies", errors="html"),
    Oddity(name="errors without a body", seen="proxies", errors="none"),
    Oddity(name="bare ETags", seen="gateways", etag="bare"),
    Oddity(name="weak ETags", seen="nginx with gzip", etag="weak"),
    Oddity(name="no ETags", seen="gateways to file systems", etag="none"),
    Oddity(name="headers in lower case", seen="HTTP/2 proxies", lower_case=True),
    Oddity(name="compressed unasked", seen="proxies", zips=True),
    Oddity(name="chunked bodies", seen="proxies", chunked=True),
    Oddity(name="a connection for each request", seen="gateways", closes=True),
    Oddity(name="sizes with a fraction", seen="gateways in JavaScript", float_sizes=True),
    Oddity(name="blanks before the XML", seen="Amazon S3 API reference, CompleteMultipartUpload", blank_first=True),
    Oddity(name="no Date", seen="gateways", no_date=True),
    Oddity(name="201 for a PUT", seen="WebDAV behind", put_status=201),
    Oddity(name="200 for a DELETE", seen="gateways", delete_status=200),
    Oddity(
        name="many at once",
        seen="an old gateway behind a proxy",
        rewrites_headers=True,
        condition="400",
        batch_delete="501",
        dates="rfc1123",
        content_range="unknown-total",
        namespace="none",
        keys="plain",
        paging="v1-only",
        errors="html",
        etag="none",
        lower_case=True,
        chunked=True,
    ),
)
"""A client has to work with every one of them."""

"""Raw answers of a scripted S3 server."""

from __future__ import annotations

from litevfs.replica_clients.base import LTXFileInfo

FILE = LTXFileInfo(0, 1, 1, 1000, 0, "the-etag")
SSE_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE%3D"


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def s3_error(status: str, code: str, message: str = "said the server", **headers: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return answer(status, body, **headers)


def part(first: int, last: int, total: int | str = 1000, **headers: str) -> bytes:
    size = last - first + 1
    fields = {"Content_Range": f"bytes {first}-{last}/{total}", "ETag": '"the-etag"', **headers}
    return answer("206 Partial Content", b"x" * size, **fields)


def listing(*keys: str, token: str = "") -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>"
        f"<ETag>&quot;e&quot;</ETag><Size>5</Size></Contents>"
        for key in keys
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return answer("200 OK", f'<ListBucketResult xmlns="http://s3">{contents}{more}</ListBucketResult>'.encode())


def file_key(txid: int) -> str:
    return f"db/0000/{txid:016x}-{txid:016x}.ltx"


def close_after(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

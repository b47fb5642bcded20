"""Which line of a storage's policy permits a refused action. Pure; knows the storages by the schemes of their URLs."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

# By scheme, then by what was tried: {bucket} and {path} are those of the URL, {prefix} is the path with its slash.
_LINES = {
    "s3": {
        "list": '"s3:ListBucket" on "arn:aws:s3:::{bucket}" (it may be limited to the prefix "{prefix}*")',
        "read": '"s3:GetObject" on "arn:aws:s3:::{bucket}/{prefix}*"',
        "write": '"s3:PutObject" (and "s3:AbortMultipartUpload") on "arn:aws:s3:::{bucket}/{prefix}*"',
        "delete": '"s3:DeleteObject" on "arn:aws:s3:::{bucket}/{prefix}*" (else --no-delete, and '
        "lifecycle rules of the bucket that delete old files)",
    },
    "gs": {
        "list": "storage.objects.list on bucket {bucket} (role Storage Object Viewer)",
        "read": "storage.objects.get on bucket {bucket} (role Storage Object Viewer)",
        "write": "storage.objects.create and .delete (to replace) on bucket {bucket} (role Storage Object User)",
        "delete": "storage.objects.delete on bucket {bucket} (role Storage Object User)",
    },
    "abs": {
        "list": "role Storage Blob Data Reader on container {bucket} (a SAS token: permission l)",
        "read": "role Storage Blob Data Reader on container {bucket} (a SAS token: permission r)",
        "write": "role Storage Blob Data Contributor on container {bucket} (a SAS token: permissions c and w)",
        "delete": "role Storage Blob Data Contributor on container {bucket} (a SAS token: permission d)",
    },
    "oss": {
        "list": '"oss:ListObjects" on "acs:oss:*:*:{bucket}"',
        "read": '"oss:GetObject" on "acs:oss:*:*:{bucket}/{prefix}*"',
        "write": '"oss:PutObject" (and "oss:AbortMultipartUpload") on "acs:oss:*:*:{bucket}/{prefix}*"',
        "delete": '"oss:DeleteObject" on "acs:oss:*:*:{bucket}/{prefix}*"',
    },
    "file": {
        "list": "read and execute (r-x) for this user on the folders below {path}",
        "read": "read (r) for this user on the files below {path}",
        "write": "write (w) for this user on {path} and the folders below",
        "delete": "write (w) for this user on the folders below {path}",
    },
    "sftp": {
        "list": "read and execute (r-x) for the user of the URL on the folders below {path}",
        "read": "read (r) for the user of the URL on the files below {path}",
        "write": "write (w) for the user of the URL on {path} and the folders below",
        "delete": "write (w) for the user of the URL on the folders below {path}",
    },
    "webdav": {
        "list": "the method PROPFIND for the user of the URL on {path} and below",
        "read": "the method GET for the user of the URL below {path}",
        "write": "the methods PUT, MKCOL and MOVE for the user of the URL on {path} and below",
        "delete": "the method DELETE for the user of the URL below {path}",
    },
    "nats": {
        "list": 'publish to "$JS.API.STREAM.INFO.OBJ_{bucket}", "$JS.API.CONSUMER.*.OBJ_{bucket}" and '
        '"$JS.API.CONSUMER.*.OBJ_{bucket}.>", and subscribe to "_INBOX.>"',
        "read": 'publish to "$JS.API.DIRECT.GET.OBJ_{bucket}", "$JS.API.DIRECT.GET.OBJ_{bucket}.>", '
        '"$JS.API.CONSUMER.*.OBJ_{bucket}" and "$JS.API.CONSUMER.*.OBJ_{bucket}.>", and subscribe to "_INBOX.>"',
        "write": 'publish to "$O.{bucket}.>" and "$JS.API.STREAM.PURGE.OBJ_{bucket}"',
        "delete": 'publish to "$O.{bucket}.>" and "$JS.API.STREAM.PURGE.OBJ_{bucket}"',
    },
    "http": {
        "list": "GET and HEAD of {path} and all below: index.json in it, or a listing of each folder",
        "read": "GET and HEAD below {path}",
    },
}
_SAME = {"az": "abs", "https": "http", "webdavs": "webdav"}


def permission_hint(scheme: str, action: str, url: str) -> str | None:
    """The line of a policy that allows `action` ("list", "read", "write", "delete") at `url`; None for none known."""
    scheme = _SAME.get(scheme, scheme)
    line = _LINES.get(scheme, {}).get(action)
    if line is None:
        return None
    parts = urlsplit(url)
    path = unquote(parts.path).strip("/")
    bucket = path.partition("/")[0] if scheme == "nats" else parts.netloc.rpartition("@")[2]
    shown = f"/{path}" if scheme in ("file", "sftp", "http", "webdav") else path
    return "allow " + line.format(bucket=bucket, path=shown, prefix=f"{path}/" if path else "")

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
        "write": '"oss:PutObject" on "acs:oss:*:*:{bucket}/{prefix}*"',
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
    "http": {
        "list": "the server has to serve the folder {path} to those who ask (index.json, or a listing)",
        "read": "the server has to serve the files below {path} to those who ask",
    },
}
_SAME = {"az": "abs", "https": "http", "webdav": "sftp", "webdavs": "sftp"}


def permission_hint(scheme: str, action: str, url: str) -> str | None:
    """The line of a policy that allows `action` ("list", "read", "write", "delete") at `url`; None for none known."""
    line = _LINES.get(_SAME.get(scheme, scheme), {}).get(action)
    if line is None:
        return None
    parts = urlsplit(url)
    path = unquote(parts.path).strip("/")
    bucket = parts.netloc.rpartition("@")[2]
    shown = f"/{path}" if scheme in ("file", "sftp", "http", "https") else path
    return "allow " + line.format(bucket=bucket, path=shown, prefix=f"{path}/" if path else "")

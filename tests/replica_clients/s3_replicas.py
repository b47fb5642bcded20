"""A replica on an S3 server as the conformance suite wants it: clients of ours, and boto3 to look past them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from litevfs.replica_clients.s3.client import S3ReplicaClient

PART_SIZE = 5 << 20
"""The least S3 allows."""


class S3Replica:
    """The replica at `url`, which lies at `path` of `bucket`."""

    def __init__(self, url: str, bucket: str, path: str, raw_client: Any, part_size: int = PART_SIZE) -> None:
        self.url, self.bucket, self.path, self.raw, self.part_size = url, bucket, path, raw_client, part_size

    def new_client(self) -> S3ReplicaClient:
        return S3ReplicaClient(self.url, part_size=self.part_size)

    def put(self, level: int, name: str, data: bytes) -> None:
        self.raw.put_object(Bucket=self.bucket, Key=self.key(level, name), Body=data)

    def put_path(self, path: str, data: bytes) -> None:
        self.raw.put_object(Bucket=self.bucket, Key=f"{self.path}/{path}", Body=data)

    def get(self, level: int, name: str) -> bytes | None:
        try:
            return self.raw.get_object(Bucket=self.bucket, Key=self.key(level, name))["Body"].read()
        except self.raw.exceptions.NoSuchKey:
            return None

    def names(self, level: int) -> set[str]:
        prefix = self.key(level, "")
        pages = self.raw.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {one["Key"].removeprefix(prefix) for page in pages for one in page.get("Contents", ())}

    def timestamp_ms(self, level: int, name: str) -> int:
        metadata = self.raw.head_object(Bucket=self.bucket, Key=self.key(level, name))["Metadata"]
        return round(datetime.fromisoformat(metadata["litestream-timestamp"]).timestamp() * 1000)

    def key(self, level: int, name: str) -> str:
        return f"{self.path}/{level:04x}/{name}"

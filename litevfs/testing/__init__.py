"""Test helpers for other projects too: the client conformance suite, faulty clients and HTTP, a real S3 server."""

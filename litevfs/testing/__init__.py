"""What others can test with too: the replica client conformance suite, faulty clients and HTTP, a real S3 server."""

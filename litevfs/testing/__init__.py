"""What others can test with too: the replica client conformance suite, faulty clients, a real S3 server."""

"""From listings and ranges of LTX files to bytes: plans, fetching, blocks, caches."""

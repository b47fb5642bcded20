"""Query a Litestream replica in place, live, from Python."""

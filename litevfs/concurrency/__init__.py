"""Retries, bounded calls, futures, threads and the clock, for all other packages."""

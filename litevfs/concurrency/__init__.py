"""Retries, bounded calls, futures, threads and the clock: what every other room stands on."""

"""Compaction, retention and their schedule."""

"""One SQLite library each: its offsets, locks and errors in front of a session."""

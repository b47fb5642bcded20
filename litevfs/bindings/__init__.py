"""Bindings of SQLite libraries, one each: offsets, locks and errors of a library in front of a session."""

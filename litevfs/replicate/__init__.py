"""The primary side: from a live SQLite database to LTX files."""

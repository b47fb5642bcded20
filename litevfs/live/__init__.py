"""One replica in a process: its states as they come, who shares it, and what SQLite asks of it."""

"""One replica in a process: its refreshes and states, its sharing by connections, and SQLite's view of it."""

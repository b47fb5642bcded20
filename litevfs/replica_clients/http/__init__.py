"""HTTP connections that end in time."""

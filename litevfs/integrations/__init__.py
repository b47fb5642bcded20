"""Doors for the tools of other projects; each imports its tool when it is used, and stands on the public API."""

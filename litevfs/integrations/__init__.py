"""Integrations with tools of other projects; each imports its tool when used, and uses only the public API."""

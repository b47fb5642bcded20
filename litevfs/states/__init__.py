"""Immutable snapshots of a replica, and how one leads to the next."""

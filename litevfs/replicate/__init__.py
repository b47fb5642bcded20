"""The primary side: from a live SQLite database to LTX files."""

from litevfs.replicate.replicator import Replicator, ReplicatorStatus

__all__ = ["Replicator", "ReplicatorStatus"]

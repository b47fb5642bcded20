"""The primary side: from a live SQLite database to LTX files."""

from litevfs.replicate.replicator import Replicator, ReplicatorStatus
from litevfs.replicate.schedule import MaintenanceConfig

__all__ = ["MaintenanceConfig", "Replicator", "ReplicatorStatus"]

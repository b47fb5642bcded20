"""The primary side: from a live SQLite database to LTX files."""

from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.replicate.replicator import Replicator, ReplicatorStatus

__all__ = ["MaintenanceConfig", "Replicator", "ReplicatorStatus"]

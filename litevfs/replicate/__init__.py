"""The primary side: from a live SQLite database to LTX files."""

from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.replicate.replicator import Replicator
from litevfs.replicate.status import ReplicatorStatus

__all__ = ["MaintenanceConfig", "Replicator", "ReplicatorStatus"]

"""The configuration file of Litestream 0.5, read for `litevfs replicate --config`."""

from litevfs.replicate.config.model import Config, DatabaseEntry, Place
from litevfs.replicate.config.reading import read_config

__all__ = ["Config", "DatabaseEntry", "Place", "read_config"]

"""What `litevfs replicate` does alike for one database and for many: the time for its end, and the metrics."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from litevfs.commands.child import SHORTEST_SYNC_S
from litevfs.replicate.replicator import Replicator
from litevfs.units import parse_duration_s

SHUTDOWN_TIMEOUT_S = 10.0
"""If neither a flag nor a configuration says how long the end may take."""


def shutdown_timeout_s(args: argparse.Namespace, configured_s: float | None = None) -> float:
    """How long the end may take from SIGTERM on: as the flag says, else the configuration."""
    if args.shutdown_timeout is not None:
        configured_s = parse_duration_s(args.shutdown_timeout)
    return SHUTDOWN_TIMEOUT_S if configured_s is None else max(configured_s, SHORTEST_SYNC_S)


@contextmanager
def metrics_served(
    args: argparse.Namespace, replicators: Callable[[], Sequence[Replicator]], configured: str | None = None
) -> Iterator[None]:
    """Serve the metrics at the address that the flag names, else the configuration, if one does."""
    address = args.metrics_addr or configured
    if address is None:
        yield
        return
    from litevfs.commands.metrics import serving  # its package is an extra

    with serving(address, replicators) as port:
        print(f"litevfs: metrics on port {port}", file=sys.stderr)
        yield

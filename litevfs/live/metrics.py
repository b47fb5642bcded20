"""`litevfs.metrics()`: what the replicas of this process do, in Prometheus' form. Loads its library when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litevfs.errors import OptionError
from litevfs.live.registry import registry as replicas

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def metrics() -> str:
    """Metrics of every replica that connections of this process hold open, in Prometheus' text format.

    Names begin with `litevfs_`, the label `replica` is the URL without credentials; counts go on when a replica is
    closed and opened again. Makes no request. Raises OptionError without the package prometheus_client.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise _missing() from error
    registry = CollectorRegistry()
    register_metrics(registry)
    return generate_latest(registry).decode()


def register_metrics(registry: CollectorRegistry | None = None) -> None:
    """Add these metrics to a registry of prometheus_client, by default the one that its servers show.

    Raises OptionError without the package, ValueError (of prometheus_client) if they are there already.
    """
    try:
        from prometheus_client import REGISTRY

        from litevfs.live.prometheus import ReplicaCollector
    except ImportError as error:
        raise _missing() from error
    (REGISTRY if registry is None else registry).register(ReplicaCollector(replicas))


def _missing() -> OptionError:
    return OptionError("metrics need prometheus_client", hint="pip install 'litevfs[metrics]'")

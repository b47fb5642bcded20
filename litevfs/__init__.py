"""Query a Litestream replica of a SQLite database in place, live, from Python.

    import apsw, litevfs
    litevfs.register()
    con = apsw.Connection("file:app.db?replica_url=s3://bucket/app", vfs="litestream",
                          flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)

or, in one call, `con = litevfs.connect("s3://bucket/app")`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from litevfs import dbapi as dbapi
    from litevfs import errors as errors
    from litevfs.api import (
        connect,
        connect_async,
        connect_stdlib,
        diff,
        last_error,
        register,
        register_stdlib,
        subscribe,
        verify,
        wait_for,
    )
    from litevfs.bindings.sqlite3_connection import StdlibConnection
    from litevfs.errors import (
        ConditionsUnsupportedError,
        FollowError,
        FollowTargetError,
        LitevfsError,
        LTXChecksumError,
        LTXFormatError,
        LTXMissingPagesError,
        OptionError,
        PageUnavailableError,
        ReplicaConflictError,
        ReplicaEmptyError,
        ReplicaError,
        ReplicaFolderNotFoundError,
        ReplicaFormatError,
        ReplicaReadOnlyError,
        ReplicatorError,
        ReplicatorLockedError,
        ReplicatorRefusedError,
        ReplicaURLError,
        RestoreError,
        RestoreTargetExistsError,
        ResultTypeError,
        SQLiteLibraryError,
        StaleReplicaError,
        StorageClosedError,
        StorageError,
        StorageFileExistsError,
        StorageNotFoundError,
        StoragePermissionError,
        StoragePreconditionError,
        StorageTimeoutError,
        TransientStorageError,
        TXIDGapError,
        TXIDNotFoundError,
        UnrelatedDatabaseError,
        WALError,
    )
    from litevfs.explain import IOReport, IORequest, explain_io
    from litevfs.integrations.arrow import arrow
    from litevfs.integrations.partitions import Partition, partitions
    from litevfs.live.metrics import metrics, register_metrics
    from litevfs.live.subscription import Subscription
    from litevfs.operations.copy import copy, copy_replica
    from litevfs.operations.diff import Change, Diff, SchemaChange
    from litevfs.operations.follow import Follow, follow
    from litevfs.operations.restore import restore
    from litevfs.operations.whole_check import Report
    from litevfs.replica_clients.urls import open_replica_client
    from litevfs.replicate import MaintenanceConfig, Replicator

__version__ = "0.1.0"

__all__ = [
    "Change",
    "ConditionsUnsupportedError",
    "Diff",
    "Follow",
    "FollowError",
    "FollowTargetError",
    "IOReport",
    "IORequest",
    "LTXChecksumError",
    "LTXFormatError",
    "LTXMissingPagesError",
    "LitevfsError",
    "MaintenanceConfig",
    "OptionError",
    "PageUnavailableError",
    "Partition",
    "ReplicaConflictError",
    "ReplicaEmptyError",
    "ReplicaError",
    "ReplicaFolderNotFoundError",
    "ReplicaFormatError",
    "ReplicaReadOnlyError",
    "ReplicaURLError",
    "Replicator",
    "ReplicatorError",
    "ReplicatorLockedError",
    "ReplicatorRefusedError",
    "Report",
    "RestoreError",
    "RestoreTargetExistsError",
    "ResultTypeError",
    "SQLiteLibraryError",
    "SchemaChange",
    "StaleReplicaError",
    "StdlibConnection",
    "StorageClosedError",
    "StorageError",
    "StorageFileExistsError",
    "StorageNotFoundError",
    "StoragePermissionError",
    "StoragePreconditionError",
    "StorageTimeoutError",
    "Subscription",
    "TXIDGapError",
    "TXIDNotFoundError",
    "TransientStorageError",
    "UnrelatedDatabaseError",
    "WALError",
    "__version__",
    "arrow",
    "connect",
    "connect_async",
    "connect_stdlib",
    "copy",
    "copy_replica",
    "diff",
    "explain_io",
    "follow",
    "last_error",
    "metrics",
    "open_replica_client",
    "partitions",
    "register",
    "register_metrics",
    "register_stdlib",
    "restore",
    "subscribe",
    "verify",
    "wait_for",
]

_HOMES = {
    "litevfs.api": (
        "connect connect_async connect_stdlib diff last_error register register_stdlib subscribe verify wait_for"
    ),
    "litevfs.bindings.sqlite3_connection": "StdlibConnection",
    "litevfs.explain": "IOReport IORequest explain_io",
    "litevfs.integrations.arrow": "arrow",
    "litevfs.integrations.partitions": "Partition partitions",
    "litevfs.live.metrics": "metrics register_metrics",
    "litevfs.live.subscription": "Subscription",
    "litevfs.operations.copy": "copy copy_replica",
    "litevfs.operations.diff": "Change Diff SchemaChange",
    "litevfs.operations.follow": "Follow follow",
    "litevfs.operations.restore": "restore",
    "litevfs.operations.whole_check": "Report",
    "litevfs.replica_clients.urls": "open_replica_client",
    "litevfs.replicate": "MaintenanceConfig Replicator",
}
"""Where each public name lies; the errors lie in `litevfs.errors`. A module is imported when a name of it is first
used, so that a process that only reads does not load the primary's modules, nor a reader of a folder those for S3."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
_MODULES = ("dbapi", "errors")
"""Those that a user calls by name, as `litevfs.dbapi.connect`, after `import litevfs`."""


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"litevfs.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'litevfs' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME_OF.get(name, "litevfs.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

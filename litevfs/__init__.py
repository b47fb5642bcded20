"""Query a Litestream replica of a SQLite database in place, live, from Python.

    import apsw, litevfs
    litevfs.register()
    con = apsw.Connection("file:app.db?replica_url=s3://bucket/app", vfs="litestream",
                          flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)

or, in one call, `con = litevfs.connect("s3://bucket/app")`.
"""

from litevfs.api import (
    connect,
    connect_async,
    connect_stdlib,
    diff,
    last_error,
    register,
    register_stdlib,
    subscribe,
    wait_for,
)
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
from litevfs.integrations.arrow import arrow
from litevfs.integrations.partitions import Partition, partitions
from litevfs.live.subscription import Subscription
from litevfs.operations.copy import copy_replica
from litevfs.operations.diff import Change, Diff, SchemaChange
from litevfs.operations.follow import Follow, follow
from litevfs.operations.restore import restore
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
    "RestoreError",
    "RestoreTargetExistsError",
    "ResultTypeError",
    "SQLiteLibraryError",
    "SchemaChange",
    "StaleReplicaError",
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
    "copy_replica",
    "diff",
    "follow",
    "last_error",
    "open_replica_client",
    "partitions",
    "register",
    "register_stdlib",
    "restore",
    "subscribe",
    "wait_for",
]

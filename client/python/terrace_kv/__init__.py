"""terrace: KV cache kept across GPU, host memory and NVMe, by a daemon on the node.

    import terrace_kv
    client = terrace_kv.open("/var/tmp/my-cache")   # a private daemon; or open() for the shared one

See terrace_kv.connectors for engines.
"""

from terrace_kv.client import (
    Chunk, Client, CommitReport, K, KvGeometry, Lease, Match, Model, Store, StoreChunk, V, open,
)
from terrace_kv.errors import (
    AlreadyExists, DataLoss, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument,
    NotFound, PermissionDenied, ResourceExhausted, TerraceError, Unavailable,
)
from terrace_kv.hints import ExpectedRead, HintReport

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists", "Chunk", "Client", "CommitReport", "DataLoss", "DeadlineExceeded",
    "ExpectedRead", "FailedPrecondition", "HintReport", "Internal", "InvalidArgument", "K", "KvGeometry", "Lease", "Match",
    "Model", "NotFound", "PermissionDenied", "ResourceExhausted", "Store", "StoreChunk",
    "TerraceError", "Unavailable", "V", "open",
]

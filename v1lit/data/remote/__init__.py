"""Files that lie elsewhere: locations, downloads with retries, and the cache of them on the local disk.

Everything goes through fsspec. Credentials are taken as its file systems take them: AWS_* variables (also
AWS_ENDPOINT_URL, for servers other than Amazon's) and ~/.aws for s3://; gcloud's application default for gs://;
AZURE_STORAGE_* for az://; HF_TOKEN or `hf auth login` for hf://; ~/.netrc and the proxy variables for
http(s)://. More options of a file system go into fsspec's own configuration, for instance
FSSPEC_S3='{"anon": true}' in the environment. They are read once per process.
"""

from v1lit.data.remote.cache import ShardCache
from v1lit.data.remote.chunks import remote_chunks
from v1lit.data.remote.download import download
from v1lit.data.remote.error import CacheError, RemoteError, shown
from v1lit.data.remote.location import (
    exists,
    expand,
    is_open,
    is_pattern,
    is_remote,
    join,
    may_be_folder,
    parent,
    read_bytes,
    unbrace,
)
from v1lit.data.remote.retry import DEFAULT_RETRY, Retry

__all__ = [
    "DEFAULT_RETRY",
    "CacheError",
    "RemoteError",
    "Retry",
    "ShardCache",
    "download",
    "exists",
    "expand",
    "is_open",
    "is_pattern",
    "is_remote",
    "join",
    "may_be_folder",
    "parent",
    "read_bytes",
    "remote_chunks",
    "shown",
    "unbrace",
]

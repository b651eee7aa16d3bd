"""The fetcher: pulls a checkpoint by URI, verifies it and leaves it with a receipt.

Runs as `python -m torchmodel_runtime.fetch` in a container of its own, the only one with credentials, or in the process
of `torchmodel run`. Knows URIs, digests and disks; knows neither torch nor HTTP inference nor Kubernetes.
The flow is `fetcher.fetch`; read it first.
"""

from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.fetcher import FetchSettings, fetch
from torchmodel_runtime.fetch.retries import RetryPolicy
from torchmodel_runtime.fetch.sources import Timeouts
from torchmodel_runtime.fetch.transfer import Progress

__all__ = ["FetchError", "FetchSettings", "Progress", "RetryPolicy", "Timeouts", "fetch"]

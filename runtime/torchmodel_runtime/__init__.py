"""The TorchModel inference runtime: one model a process, aiohttp in front, torch behind. Knows nothing of Kubernetes."""

__version__ = "0.1.0"

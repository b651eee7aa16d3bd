"""Structured logs: one JSON object a line on stderr. Set up once by `__main__`; the rest uses `logging` as usual.

Extra fields travel by `logger.info("...", extra={"fields": {...}})`, so that a message stays a constant sentence.
"""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone
from typing import Any

import msgspec


class JsonFormatter(logging.Formatter):
    """A record as one line: time (UTC), level, logger, message, the record's own fields, the traceback if any."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "model": self._model,
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure_logs(model: str, level: int = logging.INFO) -> None:
    """Send every logger and every warning of this process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(model))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)

"""Logs as one JSON object a line, on stderr. Set up once by `__main__`; every other module only asks for its logger."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_KOPF: Final = frozenset({"k8s_skip", "k8s_ref", "settings"})
"""Fields kopf hangs onto its records for its own handlers."""


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, and whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD and name not in _KOPF}
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extra,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(level: str) -> None:
    """Send everything to stderr as JSON; kopf and aiohttp only from warnings on, for they tell of every event."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        for chatty in ("kopf", "aiohttp", "asyncio"):
            logging.getLogger(chatty).setLevel(logging.WARNING)

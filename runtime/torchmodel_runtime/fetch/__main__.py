"""`python -m torchmodel_runtime.fetch`: the process around `fetch`. Environment in, exit code and termination log out.

Exit codes: 0 fetched; EXIT_PERMANENT and EXIT_RETRYABLE as in `torchmodel_runtime.config`; 143 after SIGTERM, with what
was received kept for the next start.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec

import torchmodel_runtime.config as contract
from torchmodel_runtime.config import FetchConfig, Receipt
from torchmodel_runtime.fetch import FetchError, Progress, fetch
from torchmodel_runtime.fetch.locations import redact_uri
from torchmodel_runtime.logs import configure_logs
from torchmodel_runtime.termination import find_termination_log, write_termination_log

logger = logging.getLogger("torchmodel_runtime.fetch")

EXIT_TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Run one fetch and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m torchmodel_runtime.fetch", description="Fetch and verify a checkpoint."
    )
    parser.add_argument(
        "--config", type=Path, help=f"JSON file; default: the variable {contract.FETCH_CONFIG_VARIABLE}"
    )
    options = parser.parse_args()
    environment = dict(os.environ)
    termination_log = find_termination_log(environment)
    configure_logs(model="")
    try:
        config = read_config(options.config, environment)
        receipt = asyncio.run(_fetch_until_terminated(config, environment))
    except asyncio.CancelledError:
        logger.info("terminated; what was received stays for the next start")
        return EXIT_TERMINATED
    except FetchError as error:
        return _fail(error, termination_log)
    except Exception as error:
        logger.exception("internal error")
        unexpected = FetchError(
            contract.INTERNAL_ERROR,
            f"the fetcher failed unexpectedly: {type(error).__name__}",
            "See the fetcher's log and report this.",
            retryable=True,
        )
        return _fail(unexpected, termination_log)
    logger.info("fetched", extra={"fields": msgspec.to_builtins(receipt)})
    write_termination_log(receipt, termination_log)
    return 0


def read_config(path: Path | None, environment: Mapping[str, str]) -> FetchConfig:
    """Decode the config from a file or the environment; raises FetchError ConfigInvalid."""
    where = str(path) if path else contract.FETCH_CONFIG_VARIABLE
    try:
        content = path.read_bytes() if path else environment.get(contract.FETCH_CONFIG_VARIABLE, "").encode()
        config = msgspec.json.decode(content, type=FetchConfig)
    except OSError as error:
        raise _config_error(f"{where}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        # msgspec names the place and the expected type, never the value
        raise _config_error(f"{where}: {error}") from None
    if not config.destination.startswith("/") or (config.cache is not None and not config.cache.startswith("/")):
        raise _config_error(f"{where}: destination and cache must be absolute paths")
    return config


async def _fetch_until_terminated(config: FetchConfig, environment: Mapping[str, str]) -> Receipt:
    task = asyncio.ensure_future(fetch(config, _log_progress, environment=environment))
    # as process 1 of a container SIGTERM would do nothing without a handler
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    logger.info("fetching", extra={"fields": {"uri": redact_uri(config.uri), "sha256": config.sha256}})
    return await task


def _log_progress(progress: Progress) -> None:
    logger.info("progress", extra={"fields": asdict(progress)})


def _fail(error: FetchError, termination_log: Path | None) -> int:
    failure = error.to_failure()
    fields = {
        "reason": failure.reason,
        "cause": failure.message,
        "nextStep": failure.next_step,
        "retryable": error.retryable,
    }
    logger.error("not fetched", extra={"fields": fields})
    write_termination_log(failure, termination_log)
    return contract.EXIT_RETRYABLE if error.retryable else contract.EXIT_PERMANENT


def _config_error(message: str) -> FetchError:
    return FetchError(contract.CONFIG_INVALID, message, "Correct the fetcher's configuration.")


if __name__ == "__main__":
    sys.exit(main())

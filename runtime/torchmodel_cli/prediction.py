"""`torchmodel predict`: ask a served model with a file, JSON or a sentence, and print a readable answer.

Exit codes: 0 answered, 1 the server gave an error or none, 2 the command was used wrongly.
"""

from __future__ import annotations

import json
import sys

from torchmodel_cli.answers import format_answer
from torchmodel_cli.bodies import BadUse, make_body
from torchmodel_cli.client import Endpoint, ServerError, fetch_metadata, find_names, parse_endpoint, post
from torchmodel_cli.running import read_running


def predict(target: str, given: str, model: str | None, is_raw: bool) -> int:
    """Ask `target` (a URL, or the name of a locally running model) and print the answer. Returns the exit code."""
    try:
        print(ask(find_endpoint(target, model), given, is_raw))
    except BadUse as error:
        print(f"torchmodel predict: {error}", file=sys.stderr)
        return 2
    except ServerError as error:
        print(f"torchmodel predict: {error}", file=sys.stderr)
        return 1
    return 0


def ask(endpoint: Endpoint, given: str, is_raw: bool = False) -> str:
    """The answer as text: readable, or as the server wrote it. Raises BadUse, ServerError."""
    metadata = fetch_metadata(endpoint)
    answer = post(endpoint, make_body(given, metadata["inputs"]))
    return answer.decode() if is_raw else format_answer(json.loads(answer))


def find_endpoint(target: str, model: str | None) -> Endpoint:
    """Where to ask: what the URL says, or what `torchmodel run` noted under this name. Raises BadUse, ServerError."""
    if "://" not in target:
        running = read_running()
        if target not in running:
            known = f"running here: {', '.join(sorted(running))}" if running else "none runs here"
            url = f"http://{target}" if ":" in target or "." in target or target == "localhost" else "a URL"
            raise BadUse(f"no model {target!r} is served by `torchmodel run` on this machine ({known}); give {url}")
        return Endpoint(running[target], model or target)
    base, name = parse_endpoint(target)
    if model or name:
        return Endpoint(base, model or name or "")
    names = find_names(base)
    if len(names) != 1:
        raise BadUse(f"{base} serves {', '.join(names) or 'no model'}; say which with --model")
    return Endpoint(base, names[0])

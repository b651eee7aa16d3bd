"""The `torchmodel` command: parses the command line and calls one function a subcommand.

Modules are imported when their subcommand runs, so that `--help` and `validate` need neither torch nor a server.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

RUN_EXAMPLES = """
    examples:
      torchmodel run torchmodel.yaml
      torchmodel run torchmodel.yaml --port 9000 --checkpoint ~/models/newer.pth
      AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… torchmodel run torchmodel.yaml
      torchmodel run torchmodel.yaml --once request.json      # serve, ask once, print the answer, end

    exit codes: 0 served and ended, 1 an error of ours or of the server, 2 what was given can't work, 3 try again later
"""

PREDICT_EXAMPLES = """
    examples:
      torchmodel predict image photo.jpg                      # a model that `torchmodel run` serves here
      torchmodel predict http://127.0.0.1:8080 photo.jpg      # any server that holds one model
      torchmodel predict http://host/v2/models/text 'A sentence.'
      torchmodel predict linear '{"instances": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]}'
      cat request.json | torchmodel predict linear - --json

    exit codes: 0 answered, 1 the server gave an error or no answer, 2 the command was used wrongly
"""

VALIDATE_EXAMPLES = """
    examples:
      torchmodel validate torchmodel.yaml
      torchmodel validate models/*.yaml

    exit codes: 0 all are valid, 1 something is wrong: each line says file:line: field: what was given, what is allowed
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        return int(options.call(options))
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        # the reader of our output has gone; Python would print a traceback while closing stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; docs/generate_reference.py makes the manual from it."""
    parser = argparse.ArgumentParser(
        prog="torchmodel",
        description="Serve a PyTorch checkpoint from a TorchModel manifest on this machine, ask it, check manifests.",
        epilog="`torchmodel COMMAND --help` has examples. Manual: docs/reference/cli.md",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_predict(commands)
    _add_validate(commands)
    version = commands.add_parser("version", help="print the versions of what is installed")
    version.set_defaults(call=_version)
    return parser


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _add(commands: Commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[:1].upper()}{summary[1:]}.",
        epilog=dedent(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_run(commands: Commands) -> None:
    run = _add(
        commands, "run", "serve a manifest on this machine: same spec, fetch and runtime as on a cluster", RUN_EXAMPLES
    )
    run.add_argument("manifest", type=Path, help="YAML file with a TorchModel; ConfigMaps it names may be in it too")
    run.add_argument("--name", help="which model, if the file holds several")
    run.add_argument("--host", default="127.0.0.1", help="address to serve on (default: %(default)s)")
    run.add_argument("--port", type=_port, default=8080, help="port to serve on, 0 for any (default: %(default)s)")
    run.add_argument(
        "--grpc-port",
        type=_port,
        metavar="PORT",
        help="port for gRPC if the manifest enables it, 0 for any (default: 8081)",
    )
    run.add_argument(
        "--checkpoint", metavar="PATH_OR_URI", help="serve this instead of spec.checkpoint.uri; sha256 stays"
    )
    run.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="where fetched checkpoints are kept (default: ~/.cache/torchmodel/checkpoints)",
    )
    run.add_argument(
        "--credentials",
        type=Path,
        metavar="FOLDER",
        help="one file per credential, as in the Secret (default: the environment's AWS_*)",
    )
    run.add_argument("--once", metavar="REQUEST", help="ask this (as `predict` takes it), print the answer and end")
    run.add_argument("--verbose", action="store_true", help="show the server's whole log, not only warnings")
    run.set_defaults(call=_run)


def _add_predict(commands: Commands) -> None:
    predict = _add(commands, "predict", "ask a served model and print a readable answer", PREDICT_EXAMPLES)
    predict.add_argument(
        "target", metavar="URL_OR_NAME", help="URL of the server or model, or the name of a model served here"
    )
    predict.add_argument(
        "given",
        metavar="FILE_OR_JSON",
        help="image, recording, text or .json file; JSON; a sentence; - for standard input",
    )
    predict.add_argument("--model", metavar="NAME", help="which model, if the server holds several")
    predict.add_argument("--json", "--raw", dest="is_raw", action="store_true", help="print the server's own answer")
    predict.set_defaults(call=_predict)


def _add_validate(commands: Commands) -> None:
    validate = _add(commands, "validate", "check manifests by the cluster's own schema and rules", VALIDATE_EXAMPLES)
    validate.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST", help="YAML files")
    validate.set_defaults(call=_validate)


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be 0 to 65535")
    return port


def _run(options: argparse.Namespace) -> int:
    from torchmodel_cli.localrun import RunOptions, run

    return run(
        RunOptions(
            manifest=options.manifest,
            name=options.name,
            host=options.host,
            port=options.port,
            grpc_port=options.grpc_port,
            checkpoint=options.checkpoint,
            cache=options.cache,
            credentials=options.credentials,
            once=options.once,
            is_verbose=options.verbose,
        )
    )


def _predict(options: argparse.Namespace) -> int:
    from torchmodel_cli.prediction import predict

    return predict(options.target, options.given, options.model, options.is_raw)


def _validate(options: argparse.Namespace) -> int:
    from torchmodel_cli.validation import validate

    return validate(options.manifests)


def _version(_: argparse.Namespace) -> int:
    from torchmodel_cli.versions import version_lines

    print("\n".join(version_lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`simclr-deploy serve`: parse the arguments, read the token, and start and stop the server in ``deploy.server``."""

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import ArgumentError, DeployError
from deploy.session import available_cpus
from deploy.trust.signature import TRUST_HELP

if TYPE_CHECKING:
    from deploy.server.connection import DrainingServer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "SIMCLR_SERVE_TOKEN"  # noqa: S105  the variable's name, not a token
TOKEN_LENGTH = 16
BACKLOG = 2048
"""Connections that the kernel queues while the event loop is busy; the default of uvicorn."""
MODEL_RUNS = 4
"""Runs of the model at the same time. One run leaves cores idle between its layers, which another one uses."""

EPILOG = """\
examples:
  simclr-deploy serve models/bundle
  simclr-deploy serve registry --index photos.index --port 8000
  simclr-deploy serve registry --host 0.0.0.0 --token-file /run/secrets/token

The server uses a registry's current version, and switches within a second after its CURRENT changes. See
docs/serving.md.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `serve`."""
    summary = "answer embedding, classification and search requests over HTTP"
    parser = commands.add_parser(
        "serve",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=serve)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of a bundle, or a registry")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, only this machine"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 chooses a free port")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=f"or set {TOKEN_VARIABLE} to the token")
    parser.add_argument("--index", type=Path, metavar="DIR", help="index to search, made by `simclr-deploy index`")
    parser.add_argument("--threads", type=int, metavar="N", help="of the model; default: the cores it may use")
    parser.add_argument("--variant", default="fp32", help="of the model: fp32, int8, fp16 or auto; default: fp32")
    parser.add_argument("--trust", type=Path, metavar="FILE", help=TRUST_HELP)
    parser.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        help="simultaneous connections; default: 900, or what `ulimit -n` allows",
    )
    numbers = (
        ("--max-batch", 1, "images of several requests in one run of the model"),
        ("--queue", 128, "images that may wait, of all clients"),
        ("--max-images", 64, "images in one request"),
        ("--max-megabytes", 20, "size of one request"),
        ("--max-megapixels", 16, "size of one image"),
        ("--decode-megabytes", 1_000, "memory of all large images that are decoded at the same time"),
        ("--deadline", 10, "seconds from a complete request to its answer"),
        ("--receive-deadline", 30, "seconds for the body of a request"),
        ("--check-megabytes", 4_000, "memory limit for the trial of a new model"),
    )
    for name, default, meaning in numbers:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{meaning}; default: {default:,}")


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        DeployError: the extra ``serve`` is not installed, an argument is wrong, or the bundle cannot be used.
    """
    token = read_token(options.host, options.token_file, os.environ)
    logging.basicConfig(handlers=[_JsonHandler()], level=logging.WARNING)
    with _listen(options.host, options.port) as listener:
        server = build(options, token)
        from deploy.server.service import log

        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server.on_listening = lambda: log("listening", address=address)
        server.run([listener])
        log("ended")
    return 0


def build(options: argparse.Namespace, token: str | None) -> "DrainingServer":
    """Load and verify the model and build its server, without listening yet."""
    try:
        from deploy.server.app import application
        from deploy.server.connection import make_server
    except ImportError as error:
        raise DeployError(f"serve needs {error.name}; run: pip install 'simclr-pipeline[serve]'") from None
    from deploy.candidate import check
    from deploy.server.accept import most_connections
    from deploy.server.engine import Engine
    from deploy.server.limits import Limits
    from deploy.server.metrics import Metrics
    from deploy.server.models import Models, load_model
    from deploy.server.service import Service, log

    _check_numbers(options)
    limits = Limits(
        body_bytes=options.max_megabytes * 1_000_000,
        images=options.max_images,
        pixels=options.max_megapixels * 1_000_000,
        decoding_bytes=options.decode_megabytes * 1_000_000,
        queue=options.queue,
        deadline_seconds=options.deadline,
        receive_seconds=options.receive_deadline,
        connections=most_connections(options.max_connections),
    )
    metrics = Metrics()
    models = Models(
        options.bundle,
        load=lambda root: load_model(root, options.threads, options.variant, options.index, options.trust),
        check=lambda directory: check(
            directory, memory_mb=options.check_megabytes, variant=options.variant, trust=options.trust
        ),
        metrics=metrics,
        log=log,
    )
    if models.current.index_fault:
        raise DeployError(models.current.index_fault)
    engine = Engine(metrics, limits, decoders=available_cpus(), max_batch=options.max_batch, runs=MODEL_RUNS)
    service = Service(models, engine, metrics, limits)
    hosts = (*LOOPBACK, "[::1]") if options.host in LOOPBACK and token is None else ()
    models.watch()
    return make_server(
        application(service, token, hosts),
        limits,
        lambda reason: metrics.count("simclr_connections_refused_total", reason=reason),
        service.drain,
    )


def read_token(host: str, file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Return the token that requests must carry; None if a server on a loopback address has no token.

    Raises:
        ArgumentError: ``host`` is not a loopback address and there is no token, or the token is short or not ASCII.
    """
    text = environment.get(TOKEN_VARIABLE) if file is None else file.read_text(encoding="utf-8")
    token = (text or "").strip()
    if not token and file is None:
        if host not in LOOPBACK:
            raise ArgumentError(
                f"--host {host}: other machines can reach it; give --token-file FILE, or set {TOKEN_VARIABLE}"
            )
        return None
    if len(token) < TOKEN_LENGTH or not token.isascii() or any(letter.isspace() for letter in token):
        raise ArgumentError(
            f"the token is empty, too short, not ASCII or has spaces; use {TOKEN_LENGTH} characters or more, "
            "such as from `openssl rand -hex 32`"
        )
    return token


def _check_numbers(options: argparse.Namespace) -> None:
    for name, value in vars(options).items():
        if type(value) is int and value < 1 and name != "port":
            raise ArgumentError(f"--{name.replace('_', '-')} {value}; give 1 or more")


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise ArgumentError(f"--port {port}; give 1 to 65535, or 0 for a free port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ArgumentError(f"--host {host} --port {port}: {error.strerror or error}; choose another") from None


class _JsonHandler(logging.Handler):
    """Writes log records of libraries as lines of JSON, like the log of the server."""

    def emit(self, record: logging.LogRecord) -> None:
        line = {"event": "log", "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        sys.stderr.write(json.dumps(line) + "\n")

"""`simclr-deploy serve`: parse the arguments, and start and stop the server in ``deploy.server``."""

import argparse
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import ArgumentError, DeployError, require_positive
from deploy.failure import install_command, print_error
from deploy.server.transport.credentials import Certificate, FromFiles, Report, open_certificate, read_tokens, watch
from deploy.server.transport.listen import listen, listen_unix, remember
from deploy.session import available_cpus
from deploy.trust.signature import TRUST_HELP

if TYPE_CHECKING:
    from deploy.server.transport.draining import DrainingServer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "SIMCLR_SERVE_TOKEN"  # noqa: S105  the variable's name, not a token
OTHER_USERS = 0o006
UNIX_MODE = 0o660
MODEL_RUNS = 4
"""Runs of the model at the same time. One run leaves cores idle between its layers, which another one uses."""

EPILOG = """\
examples:
  simclr-deploy serve models/bundle
  simclr-deploy serve registry --index photos.index --port 8000
  simclr-deploy serve registry --host :: --token-file token --tls-cert server.crt --tls-key server.key
  simclr-deploy serve registry --unix /run/simclr/socket

The server uses a registry's current version, and switches within a second after its CURRENT changes. SIGTERM answers
what was accepted and ends; SIGHUP reads tokens and certificate again. See docs/serving.md.
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
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; localhost and :: mean IPv4 and IPv6; default: 127.0.0.1, only this machine",
    )
    where.add_argument("--unix", type=Path, metavar="PATH", help="listen on a Unix socket instead")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 chooses a free port")
    parser.add_argument(
        "--unix-mode",
        type=_permissions,
        default=UNIX_MODE,
        metavar="MODE",
        help=f"who may connect to the Unix socket; default: {UNIX_MODE:o}, this user and its group",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"a token in each line; read again when it changes; or set {TOKEN_VARIABLE} to the token",
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="serve HTTPS with this chain of certificates (PEM)"
    )
    parser.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="its private key; both are read again when changed"
    )
    parser.add_argument(
        "--cors-origin",
        type=_origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin use the server; can be repeated; default: of no other origin",
    )
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
        DeployError: the extra ``serve`` is not installed, an argument is wrong, the bundle cannot be used, or the Unix
            socket is gone later.
    """
    logging.basicConfig(handlers=[_JsonHandler()], level=logging.WARNING)
    if not sys.stderr.isatty() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server handles it: a reload then, nothing to lose
    with _listen(options) as listeners:
        server = build(options)
        from deploy.server.service import log

        addresses = [address_of(listener, options) for listener in listeners]

        def announce() -> None:
            if sys.stderr.isatty():
                print_error(describe_address(addresses))
            log("listening", address=addresses[0], addresses=addresses)

        server.on_listening = announce
        if options.unix:
            server.is_reachable = remember(options.unix)
        server.run(listeners)
        if not server.is_reachable():
            raise DeployError(
                f"--unix {options.unix}: the socket was removed or replaced, so that no one reaches this server; "
                "start it again, and keep others from cleaning the folder"
            )
        log("ended")
    return 0


def build(options: argparse.Namespace) -> "DrainingServer":
    """Read tokens and certificate, load and verify the model, and build its server, without listening yet."""
    try:
        from deploy.server.app import application
        from deploy.server.transport.draining import make_server
    except ImportError as error:
        raise DeployError(f"serve needs {error.name}, which is not installed; run {install_command('serve')}") from None
    from deploy.candidate import check
    from deploy.server.engine import Engine
    from deploy.server.limits import Limits
    from deploy.server.metrics import Metrics
    from deploy.server.models import Models, load_model
    from deploy.server.service import Service, log
    from deploy.server.transport.accept import most_connections
    from deploy.server.trust import Trust

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

    def report(what: str) -> Report:
        def report_it(error: ArgumentError | None) -> None:
            metrics.count("simclr_reloads_total", what=what, outcome="failed" if error else "changed")
            log(f"{what} kept" if error else f"{what} changed", **({"error": str(error)} if error else {}))

        return report_it

    tokens = find_tokens(options, os.environ, report("tokens"))
    certificate = find_certificate(options.tls_cert, options.tls_key, report("certificate"))
    sources: list[FromFiles[Any]] = [source for source in (tokens, certificate) if source]
    if certificate:
        try:
            certificate.current.check()
        except ArgumentError as error:
            log("certificate expired", error=str(error))

    def refresh() -> None:
        for source in sources:
            source.refresh()

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
    expires = (lambda: certificate.current.expires) if certificate else None
    trust = Trust(options.trust, models, metrics, log) if options.trust else None
    service = Service(models, engine, metrics, limits, expires, trust)
    hosts = (*LOOPBACK, "[::1]") if options.host in LOOPBACK and not options.unix and tokens is None else ()
    models.watch()
    watch(sources, metrics)
    if trust:
        trust.watch()
    return make_server(
        application(service, (lambda: tokens.current) if tokens else None, hosts, options.cors_origin),
        limits,
        metrics,
        service.drain,
        refresh,
        (lambda: certificate.current.context) if certificate else (lambda: None),
    )


def find_tokens(
    options: argparse.Namespace, environment: Mapping[str, str], report: Report
) -> FromFiles[tuple[bytes, ...]] | None:
    """Return the tokens of which requests must carry one; None if only this machine reaches the server, without any.

    Raises:
        ArgumentError: others can reach the server and there is no token, or one cannot be used.
    """
    text = environment.get(TOKEN_VARIABLE, "").strip().encode()
    if options.token_file:
        return FromFiles("tokens", [options.token_file], lambda contents: read_tokens(contents[0]), report)
    if text:
        return FromFiles("tokens", [], lambda _: read_tokens(text), report)
    if options.unix and options.unix_mode & OTHER_USERS:
        who = f"--unix-mode {options.unix_mode:o}: every user of this machine can reach it"
    elif not options.unix and options.host not in LOOPBACK:
        who = f"--host {options.host}: other machines can reach it"
    else:
        return None
    raise ArgumentError(f"{who}; give --token-file FILE, or set {TOKEN_VARIABLE}")


def find_certificate(certificate: Path | None, key: Path | None, report: Report) -> FromFiles[Certificate] | None:
    """Return the certificate to serve HTTPS with; None for plain HTTP.

    Raises:
        ArgumentError: only one of the files is given, one cannot be read, or they do not belong together.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ArgumentError("--tls-cert and --tls-key belong together; give both, or neither for plain HTTP")
    files = [certificate, key]
    make = partial(open_certificate, certificate, key)
    return FromFiles("certificate", files, lambda contents: make(contents[0]), report, Certificate.check)


def _check_numbers(options: argparse.Namespace) -> None:
    numbers = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items() if type(value) is int}
    require_positive(
        2**63 - 1, **{name: value for name, value in numbers.items() if name not in ("--port", "--unix-mode")}
    )


@contextmanager
def _listen(options: argparse.Namespace) -> Iterator[list[socket.socket]]:
    if options.unix:
        with listen_unix(options.unix, options.unix_mode) as listener:
            yield [listener]
    else:
        with listen(options.host, options.port) as listeners:
            yield listeners


def address_of(listener: socket.socket, options: argparse.Namespace) -> str:
    """Return where clients find the server."""
    if options.unix:
        return f"unix:{options.unix}"
    host, port = listener.getsockname()[:2]
    return f"http{'s' * bool(options.tls_cert)}://{f'[{host}]' if ':' in host else host}:{port}"


def describe_address(addresses: Sequence[str]) -> str:
    """What a person at a terminal opens: a page to try the encoder. That of all interfaces is also this machine's."""
    shown = [one.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:") for one in addresses]
    pages = [f"{one}/" for one in shown if one.startswith("http")]
    where = f"open {' or '.join(pages)} to try it, {pages[0]}docs for the API" if pages else f"at {shown[0]}"
    return f"serving; {where}; Ctrl-C ends it"


def _origin(text: str) -> str:
    """Check that an origin is written as browsers send it: in lower case, without the default port."""
    wrong = (text.startswith("https:") and text.endswith(":443")) or (text.startswith("http:") and text.endswith(":80"))
    if wrong or not re.fullmatch(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"{text[:100]!r} is not an origin as browsers send it; give one such as https://app.example.org, "
            "in lower case and without the default port"
        )
    return text


def _permissions(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a valid set of permissions; give them in octal, such as {UNIX_MODE:o}"
        )
    return mode


class _JsonHandler(logging.Handler):
    """Writes log records of libraries as lines of JSON, like the log of the server."""

    def emit(self, record: logging.LogRecord) -> None:
        line = {"event": "log", "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        print_error(json.dumps(line))

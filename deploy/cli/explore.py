"""`simclr-deploy explore`: the images of an index on a map in a browser."""

import argparse
import sys
from pathlib import Path

from deploy.bundle import FP32
from deploy.encoder import load
from deploy.errors import DeployError
from deploy.failure import install_command
from deploy.search.index import Index
from deploy.trust.signature import TRUST_HELP

LOOPBACK = "127.0.0.1"


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `explore`."""
    summary = "show the images of an index on a map in a browser, on this machine only"
    parser = commands.add_parser("explore", help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=explore)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of a bundle, or a registry")
    parser.add_argument("index", type=Path, metavar="INDEX", help="made by `index` with the same bundle")
    parser.add_argument("--port", type=int, default=3100, help="default: 3100")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the cores that this process may use")
    parser.add_argument("--variant", default=FP32, help="fp32, int8, fp16 or auto; default: fp32")
    parser.add_argument("--trust", type=Path, metavar="FILE", help=TRUST_HELP)


def explore(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        DeployError: the extra ``serve`` is not installed, or bundle or index cannot be used.
    """
    try:
        import uvicorn

        from deploy.explore.app import application
        from deploy.explore.indexed import Indexed
        from deploy.server.middleware import AccessMiddleware
    except ImportError as error:
        raise DeployError(
            f"explore needs {error.name}, which is not installed; run {install_command('serve')}"
        ) from None
    encoder = load(options.bundle, options.threads, variant=options.variant, trust=options.trust)
    print("arranging the images ...", file=sys.stderr)
    collection = Indexed(Index.open(options.index), encoder)
    app = application(collection, lambda: {"title": options.index.name}, {})
    print(f"open http://{LOOPBACK}:{options.port} in a browser; Ctrl-C ends it", file=sys.stderr)
    hosts = frozenset({LOOPBACK, "localhost"})
    uvicorn.run(
        AccessMiddleware(app, None, hosts, frozenset()),
        host=LOOPBACK,
        port=options.port,
        log_level="warning",
        lifespan="off",
        server_header=False,
    )
    return 0

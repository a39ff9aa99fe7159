"""``simclr``, also as ``python -m pipeline``."""

import sys

from deploy.failure import INSTALL_EVERYTHING, INTERRUPTED, fail


def main() -> None:
    """Start the command line; where only the base package is installed, say what is missing.

    To load all of it takes a second or more, in which a person may think better of it.
    """
    try:
        from pipeline.cli.main import run_cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("pipeline", "simclr_core", "deploy"):
            raise
        sys.exit(
            f"error: {error.name} is not installed, only what `simclr-deploy` needs is; "
            f"install the rest with {INSTALL_EVERYTHING}"
        )
    except KeyboardInterrupt:
        sys.exit(fail(INTERRUPTED, code=130))
    sys.exit(run_cli())


if __name__ == "__main__":
    main()

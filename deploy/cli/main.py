"""simclr-deploy: inspect and verify a bundle; embed, classify, search and serve images with it. Does not need torch.

BUNDLE may also be a registry folder; its current version is used.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

from deploy import latency, triton
from deploy.bundle import FP32
from deploy.cli import explore as explore_cli
from deploy.cli import index as index_cli
from deploy.cli import serve as serve_cli
from deploy.encoder import Encoder, Prediction, load
from deploy.errors import ArgumentError, BundleError, CorruptArtifactError, DeployError, UntrustedError
from deploy.failure import fail, install_command, notice, printable
from deploy.folders.addresses import is_address, picture, write_to
from deploy.folders.embedding_writers import WRITERS
from deploy.folders.folder import Compute, Options, digest_of, embed_files, image_files
from deploy.folders.progress import Progress
from deploy.processor import CPU_PROVIDER
from deploy.registry import version as version_of
from deploy.trust.signature import TRUST_HELP

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
examples:
  simclr-deploy info models/bundle
  simclr-deploy info registry
  simclr-deploy verify models/bundle
  simclr-deploy embed models/bundle photos/ -o embeddings --format parquet
  simclr-deploy classify models/bundle cat.jpg photos/ --top 3 > predictions.jsonl
  simclr-deploy bench models/bundle --threads 1

To resume an interrupted embed, run the same command again.

exit codes:
  0  done
  1  some images could not be read (the others are done), or the verification of the bundle failed
  2  nothing done: wrong arguments, or an unusable bundle, file or folder
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code; print an error as one line to standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["index"] and given[1:2] in (["add"], ["update"], ["delete"]):  # a bundle of that name is ./add
        given[:2] = [f"index-{given[1]}"]
    parser = build_parser()
    if not given:
        parser.print_help()
        return DONE
    options = parser.parse_args(given)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (DeployError, OSError) as error:
        return fail(error, REFUSED)
    except KeyboardInterrupt:
        return fail("interrupted; no output was written", INTERRUPTED)


def info(options: argparse.Namespace) -> int:
    print(json.dumps(_load_encoder(options).info, indent=2, ensure_ascii=False))
    return DONE


def verify(options: argparse.Namespace) -> int:
    try:
        encoder = _load_encoder(options)
        fidelity = encoder.verify()
    except (CorruptArtifactError, UntrustedError, BundleError) as error:
        return fail(error, FAILED)
    about = encoder.info
    name = " ".join(filter(None, (about["name"], about["version"], about["id"][:12])))
    worst = f"cosine >= {fidelity.cosine_min:.7f}, difference <= {fidelity.max_abs:.1e}"
    signed = f"signed by a key in {options.trust}; " if options.trust else ""
    checked = f"every file is as published; embedded {fidelity.images} golden images"
    # A bundle cannot send commands to the terminal by its name.
    print(f"ok: {printable(name, None)}: {signed}{checked}: {worst}")
    return DONE


def embed(options: argparse.Namespace) -> int:
    passed_over: list[str] = []
    encoder = _load_encoder(options, threads=1)  # each thread of embed_files embeds separate batches
    files = image_files(options.images, passed_over.append, encoder.takes_arrays)
    chosen = Options(options.format, not options.raw, options.batch_size, options.threads)
    compute = _compute_on_ray(options) if options.engine == "ray" else None
    progress = Progress(len(files), sys.stderr)
    try:
        failed = write_to(
            options.out,
            digest_of(encoder, files, chosen.normalize, chosen.batch_size),
            lambda out: embed_files(encoder, files, out, chosen, progress, notice, compute),
        )
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again to continue", INTERRUPTED)
    for line in [*passed_over, f"{options.out}: {len(files) - failed} embeddings"]:
        notice(line)
    if failed:
        return fail(f"{failed} of {len(files)} images could not be read; see {options.out}/failures.csv", FAILED)
    return DONE


def _compute_on_ray(options: argparse.Namespace) -> Compute:
    from deploy.folders.ray_engine import Loaded, embed_on_ray

    released = version_of(options.bundle)
    directory = options.bundle / released if released else options.bundle
    return partial(embed_on_ray, loaded=Loaded(directory, options.providers.split(","), options.variant))


def classify(options: argparse.Namespace) -> int:
    passed_over: list[str] = []
    encoder = _load_encoder(options)
    files = image_files(options.images, passed_over.append, encoder.takes_arrays)
    failed = 0
    for prediction in encoder.classify_iter(
        map(picture, files), options.top, on_error="null", batch_size=options.batch_size
    ):
        print(json.dumps(_record(prediction)))
        failed += prediction.error is not None
    for line in passed_over:
        notice(line)
    if failed:
        return fail(f"{failed} of {len(files)} images could not be read", FAILED)
    return DONE


def bench(options: argparse.Namespace) -> int:
    report = latency.measure(lambda: _load_encoder(options), options.seconds)
    print(json.dumps(asdict(report), indent=2) if options.json else latency.table(report))
    return DONE


def export_triton(options: argparse.Namespace) -> int:
    print(triton.export_triton(options.bundle, options.out, options.variant, options.trust))
    return DONE


def completion(options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise ArgumentError(f"completion needs shtab; run {install_command('completion')}") from None
    print(shtab.complete(build_parser(), options.shell))
    return DONE


def _record(prediction: Prediction) -> dict[str, object]:
    if prediction.error:
        return {"path": prediction.source, "error": prediction.error.reason, "message": str(prediction.error)}
    best = dict(zip(prediction.labels, (round(value, 6) for value in prediction.probabilities), strict=True))
    if prediction.assigned is not None:
        return {"path": prediction.source, "labels": list(prediction.assigned), "probabilities": best}
    return {"path": prediction.source, "label": prediction.labels[0], "probabilities": best}


def _load_encoder(options: argparse.Namespace, threads: int | None = None) -> Encoder:
    threads = threads or options.threads
    return load(options.bundle, threads, options.providers.split(","), options.variant, options.trust)


def place_of(text: str) -> str | Path:
    """A path, or an address as it is."""
    return text if is_address(text) else Path(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line; docs/reference/commands.md is written from it as well."""
    parser = argparse.ArgumentParser(
        prog="simclr-deploy", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('simclr-pipeline')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_command(commands, info, "print the contents of the bundle as JSON")
    _add_command(commands, verify, "check every file, and compare embeddings of the golden images on this machine")
    embed_command = _add_command(commands, embed, "write embeddings of images and folders into a new directory")
    place = "directory to make, or an address such as s3://bucket/vectors"
    embed_command.add_argument("-o", "--out", type=place_of, required=True, metavar="DIR", help=place)
    embed_command.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="ray: on the cluster that RAY_ADDRESS names, --threads encoders at a time; default: local",
    )
    embed_command.add_argument("--format", choices=list(WRITERS), default="npy", help="default: npy with ids.csv")
    embed_command.add_argument("--raw", action="store_true", help="do not scale the vectors to length 1")
    classify_command = _add_command(commands, classify, "print one line of JSON for each image")
    classify_command.add_argument("--top", type=int, default=5, metavar="K", help="classes to print; default: 5")
    # Each thread of embed holds a batch, and larger batches are not faster on a CPU.
    for command, batch_size in ((embed_command, 8), (classify_command, 32)):
        command.add_argument(
            "images", type=place_of, nargs="+", metavar="IMAGE", help="image files, folders of images, or addresses"
        )
        command.add_argument(
            "--batch-size", type=int, default=batch_size, metavar="N", help=f"images at a time; default: {batch_size}"
        )
    index_cli.register(commands)
    bench_command = _add_command(commands, bench, "measure load time, latency, throughput and memory on this machine")
    bench_command.add_argument("--seconds", type=float, default=10, metavar="S", help="duration; default: 10")
    bench_command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    serve_cli.register(commands)
    explore_cli.register(commands)
    summary = "write the encoder into a model repository of Triton Inference Server"
    triton_command = commands.add_parser(
        "export-triton", help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    triton_command.set_defaults(run=export_triton)
    triton_command.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of a bundle, or a registry")
    triton_command.add_argument("out", type=Path, metavar="OUT", help="model repository; the model gets a folder in it")
    triton_command.add_argument("--variant", default=FP32, help="fp32, int8 or fp16; default: fp32")
    triton_command.add_argument("--trust", type=Path, metavar="FILE", help=TRUST_HELP)
    summary = "print a script that lets this shell complete commands and options, for its start-up file"
    completion_command = commands.add_parser(
        "completion", help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    completion_command.set_defaults(run=completion)
    completion_command.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the script is for this one")
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(run.__name__, help=summary, description=summary[0].upper() + summary[1:] + ".")
    command.set_defaults(run=run)
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of a bundle, or a registry")
    command.add_argument("--threads", type=int, metavar="N", help="default: the cores that this process may use")
    command.add_argument("--variant", default=FP32, help="fp32, int8, fp16 or auto; default: fp32")
    providers_help = f"execution providers of onnxruntime, separated by commas; default: {CPU_PROVIDER}"
    command.add_argument("--providers", default=CPU_PROVIDER, metavar="NAMES", help=providers_help)
    command.add_argument("--trust", type=Path, metavar="FILE", help=TRUST_HELP)
    return command


if __name__ == "__main__":
    sys.exit(main())

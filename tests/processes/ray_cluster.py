"""A Ray cluster of several nodes on this machine, each a group of processes; ends with what started it.

Access needs a token, so that only these tests reach it, and Ray's note of "the cluster of this machine" stays as it is.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
NODES = """
import sys
import ray._private.utils
from ray.cluster_utils import Cluster
ray._private.utils.write_ray_address = lambda *_: None
folder, nodes, cores = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
common = dict(num_cpus=cores, object_store_memory=80_000_000)
cluster = Cluster()
started = []
def add(**arguments):  # Ray takes 127.0.0.1 for the address of the network, and no other of the loopback's
    address = f"127.0.0.{2 + len(started)}"
    for attempt in range(4):  # Ray gives a node 30 seconds to start, which a busy machine may need
        try:
            return started.append(cluster.add_node(node_ip_address=address, **common, **arguments))
        except Exception as error:  # Ray raises just that
            print(f"attempt {attempt + 1} to start a node: {error}", file=sys.stderr)
            if attempt == 3:
                raise
add(include_dashboard=False, temp_dir=folder)
for _ in range(nodes - 1):
    add()
print(cluster.address, flush=True)
for line in sys.stdin:
    command, _, number = line.strip().partition(" ")
    if command == "kill":
        cluster.remove_node(started[int(number)], allow_graceful=False)
    elif command == "add":
        add()
    print("done", flush=True)
cluster.shutdown()
"""


class Nodes:
    """``variables`` lead a process to the cluster; nodes are counted from 0, the head."""

    def __init__(self, process: "subprocess.Popen[str]", variables: dict[str, str]) -> None:
        self.variables = variables
        self._process = process

    def kill(self, node: int) -> None:
        self._ask(f"kill {node}")

    def add(self) -> None:
        self._ask("add")

    def _ask(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@contextmanager
def started(nodes: int = 2, cores: int = 1, **variables: str) -> Iterator[Nodes]:
    """A cluster of ``nodes``, each with ``cores`` and ``variables``, which imports this clone's packages."""
    folder = tempfile.mkdtemp(prefix="ray-")  # a short name: it holds sockets
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": ROOT}
    environment = os.environ | access | variables | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NODES, folder, str(nodes), str(cores)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the cluster has not started"
        yield Nodes(process, access | {"RAY_ADDRESS": address})
    shutil.rmtree(folder)

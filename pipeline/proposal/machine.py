"""What this machine has to train with."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.plural import counted
from deploy.session import available_cpus

GIGABYTE = 1e9


@dataclass(frozen=True)
class Machine:
    """``gpu_gigabytes`` has the memory of each GPU, in GB."""

    cores: int
    memory_gigabytes: float
    free_disk_gigabytes: float
    gpu_gigabytes: tuple[float, ...] = ()

    def __str__(self) -> str:
        memories = self.gpu_gigabytes
        gpus = f"{counted(len(memories), 'GPU')} of {min(memories):.0f} GB" if memories else "no GPU"
        return (
            f"{counted(self.cores, 'core')}, {gpus}, {self.memory_gigabytes:.0f} GB of memory, "
            f"{self.free_disk_gigabytes:.0f} GB of free disk"
        )


def read_machine(folder: Path) -> Machine:
    """This machine; ``folder`` is on the disk that the workspace will be on.

    Raises:
        DeviceError: it has a GPU that training could not use.
    """
    import torch  # the first second of a command; folders are looked at without it

    from simclr_core.machine.devices import usable_gpus

    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    count = usable_gpus()
    return Machine(
        cores=available_cpus(),
        memory_gigabytes=psutil.virtual_memory().total / GIGABYTE,
        free_disk_gigabytes=shutil.disk_usage(there).free / GIGABYTE,
        gpu_gigabytes=tuple(torch.cuda.get_device_properties(gpu).total_memory / GIGABYTE for gpu in range(count)),
    )

"""What a machine does not have of what a run needs: said before the run, which would end without it."""

from collections.abc import Iterator

from pipeline.costs.model import Cost
from pipeline.maintenance.disk import size


def shortages(needed: Cost, free_bytes: float, memory_bytes: float) -> Iterator[str]:
    """Sentences; the disk has ``free_bytes`` and the machine ``memory_bytes``."""
    if needed.disk_bytes > free_bytes:
        yield (
            f"a run adds about {size(needed.disk_bytes)} to the disk, and {size(free_bytes)} are free; make room with "
            "`simclr gc`, or make the workspace on a larger disk"
        )
    if needed.memory_bytes > memory_bytes:
        yield (
            f"a run takes about {size(needed.memory_bytes)} of memory, and the machine has {size(memory_bytes)}; give "
            "a smaller pretrain.batch_size, or a pretrain.micro_batch_size"
        )

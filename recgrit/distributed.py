"""Training on several processes: their numbers, and sums and copies over all of them.

A launcher (torchrun, Ray) starts the processes. Until torch.distributed is initialised, by `join`
or otherwise, the world size is 1, the process has number 0, and the functions here do no extra
work. Every process has to make the same calls in the same order.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Counter of the process groups that this process has joined.
_joins = itertools.count()


def join(backend: str, timeout: timedelta | None = None) -> None:
    """Join the processes that torchrun started, as the environment variables describe them.

    The function does what ``init_process_group`` does, and also works after a restart. After a
    restart, torchrun hands out the same key-value store again, in which a process may find the
    address of a process that died. Keys therefore get the number of the restart as a prefix. This
    number is the same in all processes only on one machine. On several machines, set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, so that each restart has its own store.
    """
    from torch.distributed.rendezvous import rendezvous

    store, number, total = next(rendezvous("env://"))
    life = "0"
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # The counter separates this process group from groups that were joined and left before.
    prefix = f"{life}-{next(_joins)}"
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=number, world_size=total, timeout=timeout)


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Return whether this is process 0, which writes files, logs and shows progress for all."""
    return process_index() == 0


def share(num_rows: int) -> slice:
    """Return the range of rows that this process works on.

    The ranges of the processes follow one another and cover all rows. If the rows cannot be divided
    evenly, the first processes get one row more. With fewer rows than processes, the last ones get
    none.
    """
    size, left = divmod(num_rows, world_size())
    start = process_index() * size + min(process_index(), left)
    return slice(start, start + size + (process_index() < left))


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; all tensors share one dtype and device."""
    if world_size() == 1 or not tensors:
        return
    flat = _carried(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def sum_numbers(*numbers: float) -> list[float]:
    """Return each number summed over all processes, in float64."""
    total = torch.tensor(numbers, dtype=torch.float64)
    sum_([total])
    summed: list[float] = total.tolist()
    return summed


def mean_of_rows(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean ``[...]`` of the rows of all processes, without gradient.

    Args:
        rows: Rows of this process, ``[B, ...]``.
        weights: Weight of each row, ``[B]``: 1 for a row that counts and 0 for any other. The mean
            of no rows is 0.
    """
    total = weights @ rows.detach()
    count = weights.sum()
    sum_([total, count])
    return total / count.clamp_min(1)


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows ``[B, ...]`` of all processes, in the order of the processes.

    B may differ between processes and may be 0.
    """
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[process_index()] = len(rows)
    sum_([counts])
    sizes: list[int] = counts.tolist()
    # all_gather needs tensors of equal size, so shorter ones are padded.
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    padded = _carried(padded)
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    parts = [part[:size] for part, size in zip(found, sizes, strict=True)]
    return torch.cat(parts).to(rows.device)


def take_from_first_(tensors: Iterable[Tensor]) -> None:
    """Copy the values of process 0 into each tensor, so that all processes have equal tensors."""
    if world_size() == 1:
        return
    for tensor in tensors:
        carried = _carried(tensor.detach().contiguous())
        dist.broadcast(carried, src=0)
        tensor.detach().copy_(carried)


def of_first(value: T) -> T:
    """Return, in every process, the value that process 0 passed.

    Processes that must agree, for example on the time or on whether a file exists, use the answer
    of process 0.
    """
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def wait() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        # A barrier of torch would need to know the device.
        of_first(None)


def seed_apart(seed: int, epoch: int) -> None:
    """Give every process but 0 its own random numbers for an epoch.

    The numbers depend on the seed, the epoch and the process only, so an epoch that is started
    again draws the same numbers. Process 0 keeps its random stream, so it draws what a single
    process draws.
    """
    if not is_first():
        mixed = torch.Generator().manual_seed(seed)
        words = torch.randint(2**31, (process_index() + 1,), generator=mixed)
        torch.manual_seed(int(words[-1]) * 2**20 + epoch)


def _carried(tensor: Tensor) -> Tensor:
    """Return the tensor on a device that the process group supports: NCCL needs GPU memory."""
    return tensor.cuda() if tensor.is_cpu and dist.get_backend() == "nccl" else tensor

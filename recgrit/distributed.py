"""Training on several processes: which one this is, and what all of them have together.

A launcher (torchrun, Ray) starts the processes. Until torch.distributed is initialised, by `join`
or otherwise, there is one process, 0, and nothing here costs anything. Every process has to make
the same calls in the same order.
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

# How often this process has joined others.
_joins = itertools.count()


def join(backend: str, timeout: timedelta | None = None) -> None:
    """Join the processes that torchrun started, by what it left in the environment.

    Like ``init_process_group``, but sound after a restart: torchrun then hands out the same store
    again, in which a process may find the address of a neighbour that died. Here the lives are told
    apart by their number, which is the same for all on one machine only. On several machines set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun: each life then has a store of its own.
    """
    from torch.distributed.rendezvous import rendezvous

    store, number, total = next(rendezvous("env://"))
    life = "0"
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # Nor is a group that was left before in this life the one that is joined now.
    prefix = f"{life}-{next(_joins)}"
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=number, world_size=total, timeout=timeout)


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes, logs and shows for all."""
    return process_index() == 0


def share(num_rows: int) -> slice:
    """The rows of this process: processes in order have all rows in order, the first one row more.

    Fewer rows than processes leave the last ones without any.
    """
    size, left = divmod(num_rows, world_size())
    start = process_index() * size + min(process_index(), left)
    return slice(start, start + size + (process_index() < left))


def sum_(tensors: Sequence[Tensor]) -> None:
    """Put the sum over all processes in place of each tensor, all of one dtype and device."""
    if world_size() == 1 or not tensors:
        return
    flat = _carried(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def sum_numbers(*numbers: float) -> list[float]:
    """Each number summed over all processes, in float64."""
    total = torch.tensor(numbers, dtype=torch.float64)
    sum_([total])
    summed: list[float] = total.tolist()
    return summed


def mean_of_rows(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean ``[...]`` of rows ``[B, ...]`` of all processes by weights ``[B]``; 0 of none.

    Without gradient.
    """
    total = weights @ rows.detach()
    count = weights.sum()
    sum_([total, count])
    return total / count.clamp_min(1)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows ``[B, ...]`` of all processes, in their order; B may differ and be 0."""
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[process_index()] = len(rows)
    sum_([counts])
    sizes: list[int] = counts.tolist()
    # Messages have to be of one size.
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    padded = _carried(padded)
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    parts = [part[:size] for part, size in zip(found, sizes, strict=True)]
    return torch.cat(parts).to(rows.device)


def take_from_first_(tensors: Iterable[Tensor]) -> None:
    """Put what process 0 has in place of each tensor."""
    if world_size() == 1:
        return
    for tensor in tensors:
        carried = _carried(tensor.detach().contiguous())
        dist.broadcast(carried, src=0)
        tensor.detach().copy_(carried)


def of_first(value: T) -> T:
    """What process 0 gave: one clock, one file system and one rounding decide for all."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def wait() -> None:
    """Go on when every process is here."""
    if world_size() > 1:
        # Not a barrier, which would need to be told the device.
        of_first(None)


def seed_apart(seed: int, epoch: int) -> None:
    """Let torch draw other numbers in every process but 0, the same whenever this epoch starts.

    Process 0 continues with its own stream, as a single process does.
    """
    if not is_first():
        mixed = torch.Generator().manual_seed(seed)
        words = torch.randint(2**31, (process_index() + 1,), generator=mixed)
        torch.manual_seed(int(words[-1]) * 2**20 + epoch)


def _carried(tensor: Tensor) -> Tensor:
    """The tensor where the process group can take it: NCCL alone takes nothing in main memory."""
    return tensor.cuda() if tensor.is_cpu and dist.get_backend() == "nccl" else tensor

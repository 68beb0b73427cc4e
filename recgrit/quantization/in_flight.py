"""Tracks outputs that still await their backward pass, so that maintenance can wait for them.

Each forward pass opens a ticket. The first backward pass through its outputs closes the ticket. The
ticket also ends when its outputs are deleted.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Self

import torch
from torch import Tensor


class _Ticket:
    """A forward pass."""


class InFlight:
    """The open tickets of one module, which several threads may use at once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: weakref.WeakSet[_Ticket] = weakref.WeakSet()

    # A copy of a module, or one that comes out of a file, has no outputs yet.
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def __bool__(self) -> bool:
        """Whether an output is being computed, or awaits a backward pass."""
        return len(self._open) > 0

    def open(self) -> _Ticket:
        """The ticket of a forward pass that begins, open for as long as something holds it."""
        ticket = _Ticket()
        self._open.add(ticket)
        return ticket

    def attach(self, ticket: _Ticket, *outputs: Tensor) -> None:
        """Let a backward pass through any of the outputs close a ticket."""
        for output in outputs:
            if output.grad_fn is not None:
                # The hook holds the ticket: it is open for as long as the graph is there.
                output.grad_fn.register_prehook(lambda _: self._close(ticket))

    def _close(self, ticket: _Ticket) -> None:
        with self.lock:
            self._open.discard(ticket)


def is_in_backward() -> bool:
    """Whether a backward pass is running in this thread: a checkpoint computes a forward anew."""
    return bool(torch._C._current_graph_task_id() != -1)

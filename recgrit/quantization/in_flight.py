"""Tracks outputs that still await their backward pass, so that codebook maintenance waits for them.

Each forward pass opens a ticket. The ticket is closed by the first backward pass through the
outputs, or when the outputs are deleted.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Self

import torch
from torch import Tensor


class _Ticket:
    """A marker of one forward pass whose backward pass may still come."""


class InFlight:
    """The forward passes of one module that await their backward pass, each with an open ticket.

    Several threads may use the module at once.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: weakref.WeakSet[_Ticket] = weakref.WeakSet()

    # A copied or unpickled module has no outputs yet, so its tickets start empty.
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def __bool__(self) -> bool:
        """Return whether an output is being computed or awaits its backward pass."""
        return len(self._open) > 0

    def open(self) -> _Ticket:
        """Open and return a ticket, which marks a forward pass that begins.

        The ticket stays open as long as an object refers to it.
        """
        ticket = _Ticket()
        self._open.add(ticket)
        return ticket

    def attach(self, ticket: _Ticket, *outputs: Tensor) -> None:
        """Close a ticket when a backward pass goes through one of the outputs.

        Args:
            ticket: Ticket of the forward pass.
            outputs: Outputs of the forward pass.
        """
        for output in outputs:
            if output.grad_fn is not None:
                # The hook refers to the ticket, so the ticket is open while the graph exists.
                output.grad_fn.register_prehook(lambda _: self._close(ticket))

    def _close(self, ticket: _Ticket) -> None:
        with self.lock:
            self._open.discard(ticket)


def is_in_backward() -> bool:
    """Return whether a backward pass is running in this thread.

    Inside a backward pass, gradient checkpointing computes a forward pass a second time.
    """
    return bool(torch._C._current_graph_task_id() != -1)

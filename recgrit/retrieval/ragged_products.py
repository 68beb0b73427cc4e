"""Products of queries with candidates of their own, whose number differs from query to query.

Shapes: O queries, C candidates of all of them, U nodes, D dimensions.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def ragged_products(
    queries: Tensor, vectors: Tensor, rows: Tensor, nodes: Tensor, by_node: Tensor
) -> Tensor:
    """The product of each candidate with its query, float32 ``[C]``, with gradients to both.

    On a CPU no vector is copied: each is multiplied where it stands, and its gradient is summed
    node by node.

    Args:
        queries: ``[O, D]``.
        vectors: ``[U, D]``.
        rows: int64 ``[C]``, the query of each candidate, ascending.
        nodes: int64 ``[C]``, its vector.
        by_node: int64 ``[C]``, the candidates in the order of their nodes.
    """
    products: Tensor = _RaggedProducts.apply(  # type: ignore[no-untyped-call]
        queries.float(), vectors.float(), rows, nodes, by_node
    )
    return products


class _RaggedProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, vectors: Tensor, rows: Tensor, nodes: Tensor, by_node: Tensor
    ) -> Tensor:
        ctx.save_for_backward(queries, vectors, rows, nodes, by_node)
        if not queries.is_cpu:
            return (queries[rows] * vectors[nodes]).sum(dim=-1)
        return sampled_products(queries, vectors, _starts(rows, len(queries) + 1), nodes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        queries, vectors, rows, nodes, by_node = ctx.saved_tensors
        to_queries = F.embedding_bag(
            nodes,
            vectors,
            _starts(rows, len(queries)),
            mode="sum",
            per_sample_weights=grad,
        )
        to_vectors = F.embedding_bag(
            rows[by_node],
            queries,
            _starts(nodes[by_node], len(vectors)),
            mode="sum",
            per_sample_weights=grad[by_node],
        )
        return to_queries, to_vectors, None, None, None


def sampled_products(queries: Tensor, vectors: Tensor, ends: Tensor, nodes: Tensor) -> Tensor:
    """Products of queries ``[O, D]`` with vectors ``[U, D]`` of their own, ``[C]``.

    Args:
        queries: ``[O, D]``.
        vectors: ``[U, D]``.
        ends: int64 ``[O + 1]``, where the candidates of each query begin and the last ones end.
        nodes: int64 ``[C]``, the vector of each candidate.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            ends,
            nodes,
            queries.new_zeros(len(nodes)),
            size=(len(queries), len(vectors)),
            check_invariants=False,
        )
        found: Tensor = torch.sparse.sampled_addmm(pattern, queries, vectors.T, beta=0.0)
    return found.values()


def _starts(sorted_rows: Tensor, num_rows: int) -> Tensor:
    """Where the entries of rows ``0 … num_rows - 1`` begin in a list that ascends."""
    wanted = torch.arange(num_rows, device=sorted_rows.device)
    return torch.searchsorted(sorted_rows, wanted)

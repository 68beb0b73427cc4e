"""Products of queries with candidate vectors, when the number of candidates differs per query.

Shapes: O queries, C candidates of all queries together, U nodes, D model dimensions.
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
    """Return the product of each candidate's vector with its query, with gradients to both.

    On a CPU no vector is copied: each is multiplied in place, and its gradients are summed per
    node.

    Shapes: O queries, D model dimensions, U nodes, C candidates of all queries together.

    Args:
        queries: Queries ``[O, D]``.
        vectors: Node vectors ``[U, D]``.
        rows: Query of each candidate, int64 ``[C]``, ascending.
        nodes: Vector of each candidate, int64 ``[C]``.
        by_node: Indices of the candidates in the order of their nodes, int64 ``[C]``.

    Returns:
        Products, float32 ``[C]``.
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
    """Return the product of each candidate's vector with its query, ``[C]``.

    Shapes: C candidates of all queries together, D model dimensions, U nodes.

    Args:
        queries: Queries ``[O, D]``.
        vectors: Node vectors ``[U, D]``.
        ends: Index of the first candidate of each query, and as a last entry the number of
            candidates, int64 of length O + 1.
        nodes: Vector of each candidate, int64 ``[C]``.
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
    """Return where the entries of each of ``num_rows`` rows begin in an ascending list of rows."""
    wanted = torch.arange(num_rows, device=sorted_rows.device)
    return torch.searchsorted(sorted_rows, wanted)

"""Time and memory of assigning codes to a million vectors, beside faiss's flat search.

    OMP_NUM_THREADS=1 python benchmarks/assign.py --json

64 dimensions, 3 plain levels of 256 codes from k-means on a sample. faiss searches each level's
codes with `IndexFlatL2` and subtracts them in between; we call `ResidualGRITVQ.encode` on the same
chunks of a file that is mapped into memory. Both take turns; medians. Codes are compared with each
other and with those of the training forward pass; they may differ where the two nearest codes are
equally near up to rounding.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from printing import print_results

from recgrit.pipeline import peak_memory_mb
from recgrit.quantization import ResidualGRITVQ

DIM, NUM_LEVELS, CODEBOOK_SIZE = 64, 3, 256
CHUNK = 65_536


def write_vectors(path: Path, num_vectors: int) -> None:
    """A mixture of Gaussians, written chunk by chunk."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(512, DIM)).astype(np.float32)
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_vectors, DIM))
    for start in range(0, num_vectors, CHUNK):
        rows = vectors[start : start + CHUNK]
        rows[:] = centres[rng.integers(512, size=len(rows))]
        rows += 0.5 * rng.normal(size=rows.shape).astype(np.float32)
    vectors.flush()


def assign_by_faiss(vectors: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    """Codes ``[N, L]`` by flat search level by level."""
    indexes = []
    for codes in codebooks:
        index = faiss.IndexFlatL2(DIM)
        index.add(codes)
        indexes.append(index)
    found = np.empty((len(vectors), NUM_LEVELS), dtype=np.int64)
    for start in range(0, len(vectors), CHUNK):
        residual = np.array(vectors[start : start + CHUNK])
        for level, (index, codes) in enumerate(zip(indexes, codebooks, strict=True)):
            nearest = index.search(residual, 1)[1][:, 0]
            found[start : start + CHUNK, level] = nearest
            residual -= codes[nearest]
    return found


def assign_by_us(vectors: np.ndarray, quantizer: ResidualGRITVQ) -> np.ndarray:
    """Codes ``[N, L]`` by the quantizer."""
    found = np.empty((len(vectors), NUM_LEVELS), dtype=np.int64)
    for start in range(0, len(vectors), CHUNK):
        rows = torch.from_numpy(np.array(vectors[start : start + CHUNK]))
        found[start : start + CHUNK] = quantizer.encode(rows).numpy()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        write_vectors(path, arguments.rows)
        vectors = np.load(path, mmap_mode="r")
        quantizer = ResidualGRITVQ(DIM, NUM_LEVELS, CODEBOOK_SIZE, normalization="none")
        quantizer.fit_init(torch.from_numpy(np.array(vectors[:20_000])))
        codebooks = [codes.numpy() for codes in quantizer.codebooks]
        before = peak_memory_mb()
        seconds: dict[str, list[float]] = {"faiss": [], "recgrit": []}
        for _ in range(arguments.repeats):
            started = time.perf_counter()
            by_us = assign_by_us(vectors, quantizer)
            seconds["recgrit"].append(time.perf_counter() - started)
            started = time.perf_counter()
            by_faiss = assign_by_faiss(vectors, codebooks)
            seconds["faiss"].append(time.perf_counter() - started)
        sample = torch.from_numpy(np.array(vectors[:4096]))
        in_training = quantizer.train()(sample).codes.numpy()
        found = {
            "rows": arguments.rows,
            "seconds": statistics.median(seconds["recgrit"]),
            "seconds_faiss": statistics.median(seconds["faiss"]),
            "vs_faiss": statistics.median(seconds["recgrit"]) / statistics.median(seconds["faiss"]),
            "same_as_faiss": float((by_us == by_faiss).all(axis=1).mean()),
            "same_as_training": float((by_us[:4096] == in_training).all(axis=1).mean()),
            "rss_growth_mb": peak_memory_mb() - before,
            "threads": torch.get_num_threads(),
        }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()

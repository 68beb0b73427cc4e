"""Measure time and memory of assigning codes to a million vectors, compared with faiss.

    OMP_NUM_THREADS=1 python benchmarks/assign.py --json

The vectors have 64 dimensions. The quantizer has 3 levels of 256 codes without normalization, from
k-means on a sample. Both contestants read the same chunks of a file that is mapped into memory.
recgrit calls `ResidualGRITVQ.encode`. faiss searches the codes of each level with `IndexFlatL2`,
and the vectors of the found codes are subtracted between the levels. The contestants take turns,
and the median time of each is printed. The codes are compared with each other and with the codes of
the training forward pass. Codes may differ where the two nearest codes are equally near up to
rounding.

Shapes: N vectors, L levels.
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
    """Write vectors of a mixture of Gaussians to a `.npy` file, chunk by chunk."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(512, DIM)).astype(np.float32)
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_vectors, DIM))
    for start in range(0, num_vectors, CHUNK):
        rows = vectors[start : start + CHUNK]
        rows[:] = centres[rng.integers(512, size=len(rows))]
        rows += 0.5 * rng.normal(size=rows.shape).astype(np.float32)
    vectors.flush()


def assign_by_faiss(vectors: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    """Return the codes ``[N, L]`` that faiss finds by flat search, level by level."""
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
    """Return the codes ``[N, L]`` that the quantizer assigns."""
    found = np.empty((len(vectors), NUM_LEVELS), dtype=np.int64)
    for start in range(0, len(vectors), CHUNK):
        rows = torch.from_numpy(np.array(vectors[start : start + CHUNK]))
        found[start : start + CHUNK] = quantizer.encode(rows).numpy()
    return found


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
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

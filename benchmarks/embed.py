"""Rate of embedding item texts as the stage does: each text once, in shards that survive a kill.

    OMP_NUM_THREADS=2 python benchmarks/embed.py --texts 2000 --json

Encodes synthetic item texts of about 60 tokens with all-MiniLM-L6-v2, every tenth a repeat, into a
cache of its own, then asks for them again. The time for a million different texts is extrapolated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from printing import print_results

from recgrit.embedding.cache import encode_cached
from recgrit.embedding.sentence_transformer import SentenceTransformerEncoder
from recgrit.engines.config import EngineConfig
from recgrit.engines.local import LocalEngine
from recgrit.pipeline import peak_memory_mb

WORDS = (
    "hair shampoo lotion cream hand natural organic daily deep moisture repair oil brush nail set "
    "color black travel size pack ounce gentle skin face mask vitamin serum"
)


def draw_texts(num_texts: int) -> list[str]:
    """Titles, brands and categories of random words."""
    draw = np.random.default_rng(0)
    words = np.array(WORDS.split())

    def some(most: int) -> str:
        return " ".join(draw.choice(words, draw.integers(most // 2, most)))

    different = [
        f"{some(16)} {row}. Brand: {some(3)}. Categories: {some(30)}."
        for row in range(num_texts * 9 // 10)
    ]
    return different + different[: num_texts - len(different)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--shard-texts", type=int, default=512)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    texts = draw_texts(arguments.texts)
    num_different = len(set(texts))
    encoder = SentenceTransformerEncoder(device=arguments.device)
    encoder.encode(texts[:1])  # Loads the weights.
    with tempfile.TemporaryDirectory() as name:
        engine = LocalEngine(EngineConfig(shard_texts=arguments.shard_texts))
        started = time.perf_counter()
        encode_cached(texts, encoder, Path(name), engine=engine)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        encode_cached(texts, encoder, Path(name), engine=engine)
        again = time.perf_counter() - started
    found = {
        "texts": len(texts),
        "different_texts": num_different,
        "seconds": seconds,
        "different_texts_per_second": num_different / seconds,
        "hours_of_a_million_extrapolated": 1e6 / (num_different / seconds) / 3600,
        "seconds_again": again,
        "peak_rss_mb": peak_memory_mb(),
        "device": encoder.device,
        "threads": torch.get_num_threads(),
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()

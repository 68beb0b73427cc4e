"""Measure the rate of embedding item texts with the code of the embed stage.

    OMP_NUM_THREADS=2 python benchmarks/embed.py --texts 2000 --json
    OMP_NUM_THREADS=2 python benchmarks/embed.py --texts 1000000 --encoder static --json

The code encodes each different text once, in shards that survive a killed process. The benchmark
encodes synthetic item texts of about 60 tokens with all-MiniLM-L6-v2, or with the static encoder
distilled from it, into an empty cache. A tenth of the texts repeats others. Then the benchmark asks
for the same texts again, which reads the cache. The time for a million different texts is
extrapolated. Loading the weights and distilling are not part of it.
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
from recgrit.embedding.sentence_transformer import SentenceTransformerEncoder, resolve_device
from recgrit.embedding.static import KeptStaticEncoder, StaticEncoder
from recgrit.engines.config import EngineConfig
from recgrit.engines.local import LocalEngine
from recgrit.pipeline import peak_memory_mb

WORDS = (
    "hair shampoo lotion cream hand natural organic daily deep moisture repair oil brush nail set "
    "color black travel size pack ounce gentle skin face mask vitamin serum"
)


def draw_texts(num_texts: int) -> list[str]:
    """Draw item texts: titles, brands and categories of random words. A tenth of them repeats."""
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
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--encoder", choices=("minilm", "static"), default="minilm")
    parser.add_argument("--shard-texts", type=int, default=512)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    texts = draw_texts(arguments.texts)
    num_different = len(set(texts))
    device = resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as name:
        encoder: SentenceTransformerEncoder | KeptStaticEncoder
        if arguments.encoder == "static":
            encoder = StaticEncoder(device=device).make(Path(name))
        else:
            encoder = SentenceTransformerEncoder(device=device)
        encoder.encode(texts[:1])  # The first call loads the weights.
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
        "device": device,
        "threads": torch.get_num_threads(),
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()

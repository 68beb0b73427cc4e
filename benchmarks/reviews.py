"""Measure the rates of reading reviews and metadata in Amazon's official formats.

    POLARS_MAX_THREADS=2 python benchmarks/reviews.py --megabytes 1024 --json

The reviews are gzipped JSON lines with the fields of the 2014 edition and about the same length.
The gzip file repeats about 100 MB of different reviews, each time as another part of the file.
recgrit reads the whole file into checked interactions. For comparison, a loop over `json.loads`
reads the first part and keeps the same four fields. The metadata lines are Python dicts. Half of
them contain an apostrophe, so they use both kinds of quotes. recgrit reads them into the item table
without `eval`. MB are megabytes of unpacked text. The time for 5 GB is extrapolated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from printing import print_results

from recgrit.data.sources import load_source
from recgrit.pipeline import peak_memory_mb

PART_REVIEWS, REVIEWS_PER_MB = 150_000, 1200
SYLLABLES = ("ba", "co", "di", "fu", "ge", "ha", "li", "mo", "nu", "pe", "qui", "ra", "so", "ti")


def draw_reviews(draw: np.random.Generator, num_reviews: int) -> bytes:
    """Draw reviews of a hundred words on average and return them as JSON lines."""
    words = np.array(["".join(draw.choice(SYLLABLES, draw.integers(1, 5))) for _ in range(20_000)])
    lines = []
    for _ in range(num_reviews):
        lengths = 4 + int(draw.geometric(1 / 95))
        text = words[(len(words) * draw.random(lengths) ** 3).astype(int)]
        review = {
            "reviewerID": f"A{draw.integers(10**12):013d}",
            "asin": f"B{draw.integers(10**5):09d}",
            "reviewerName": " ".join(text[:2]),
            "helpful": [int(draw.integers(9)), 9],
            "reviewText": " ".join(text),
            "overall": float(draw.integers(1, 6)),
            "summary": " ".join(text[:4]),
            "unixReviewTime": int(draw.integers(900_000_000, 1_400_000_000)) // 86_400 * 86_400,
            "reviewTime": "07 18, 2012",
        }
        lines.append(json.dumps(review))
    return ("\n".join(lines) + "\n").encode()


def draw_metadata(draw: np.random.Generator, num_items: int) -> bytes:
    """Draw items and return them as lines of Python dicts. Every second title has an apostrophe."""
    lines = [
        repr(
            {
                "asin": f"B{item:09d}",
                "title": f"Item {item}" if item % 2 else f"Mother's item {item}",
                "price": round(float(draw.random()) * 50, 2),
                "brand": f"Brand {draw.integers(1000)}",
                "imUrl": f"http://images.example.com/images/I/{draw.integers(10**9)}.jpg",
                "salesRank": {"Beauty": int(draw.integers(10**6))},
                "categories": [["Beauty", f"Kind {draw.integers(50)}"]],
                "related": {"also_bought": [f"B{n:09d}" for n in draw.integers(10**5, size=40)]},
            }
        )
        for item in range(num_items)
    ]
    return ("\n".join(lines) + "\n").encode()


def parse_line_by_line(path: Path, num_lines: int) -> float:
    """Return the seconds in which a loop over `json.loads` reads the first lines of a file."""
    started = time.perf_counter()
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for _, line in zip(range(num_lines), stream, strict=False):
            review = json.loads(line)
            rows.append(
                (
                    review["reviewerID"],
                    review["asin"],
                    review["unixReviewTime"],
                    review.get("overall"),
                )
            )
    return time.perf_counter() - started


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument(
        "--megabytes", type=int, default=1024, help="approximate size of the unpacked reviews"
    )
    parser.add_argument("--items", type=int, default=100_000)
    arguments = parser.parse_args()
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part_reviews = min(PART_REVIEWS, REVIEWS_PER_MB * arguments.megabytes)
        part, metadata = draw_reviews(draw, part_reviews), draw_metadata(draw, arguments.items)
        num_parts = max(1, round(arguments.megabytes * 1e6 / len(part)))
        path = folder / "reviews_Beauty_5.json.gz"
        path.write_bytes(gzip.compress(part, 6) * num_parts)
        (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress(b"{'asin': 'B'}\n"))
        source = load_source("amazon2014/Beauty")
        files = source.find_files(folder)
        by_loop = parse_line_by_line(path, part_reviews)
        started = time.perf_counter()
        num_rows = source.read(files).coded.frame.height
        by_us = time.perf_counter() - started
        (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress(metadata))
        path.write_bytes(gzip.compress(part[: part.index(b"\n") + 1]))
        started = time.perf_counter()
        num_items = source.read(files).items.height
        of_metadata = time.perf_counter() - started
    megabytes = num_parts * len(part) / 1e6
    found: dict[str, Any] = {
        "megabytes": megabytes,
        "reviews": num_rows,
        "seconds": by_us,
        "mb_per_second": megabytes / by_us,
        "mb_per_second_json_loads": len(part) / 1e6 / by_loop,
        "speedup_vs_json_loads": megabytes / by_us / (len(part) / 1e6 / by_loop),
        "seconds_of_5_gb_extrapolated": 5000 / (megabytes / by_us),
        "peak_rss_mb": peak_memory_mb(),
        "items": num_items,
        "items_per_second": num_items / of_metadata,
        "metadata_mb_per_second": len(metadata) / 1e6 / of_metadata,
        "threads": int(os.environ.get("POLARS_MAX_THREADS", os.cpu_count() or 1)),
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()

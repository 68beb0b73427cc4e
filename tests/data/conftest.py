"""A tiny data set, written in every format that can be read."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# Rows of user, item, rating and time. User 7 has two items at time 100. They must keep the order of
# the file: 30, then 10.
ROWS = (
    ("7", "30", 4, 100),
    ("9", "10", 5, 50),
    ("7", "10", 3, 100),
    ("7", "20", 5, 90),
    ("9", "30", 2, 60),
    ("9", "20", 1, 70),
)
# Rows of item id, title, year and genres.
ITEMS = (
    ("10", "Toy Story", 1995, ("Animation", "Comedy")),
    ("20", "Misérables, Les", 1998, ("Drama",)),
    ("30", None, None, ()),
)
GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]

Row = tuple[str, str, int, int]
Writer = Callable[[Path, Sequence[Row]], None]


def dated(title: str | None, year: int | None) -> str:
    return "unknown" if title is None else f"{title} ({year})"


def write_movielens_100k(folder: Path, rows: Sequence[Row]) -> None:
    lines = ["\t".join(map(str, row)) for row in rows]
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    items = []
    for item, title, year, genres in ITEMS:
        released = f"01-Jan-{year}" if year else ""
        flags = [str(int(name in genres)) for name in GENRES]
        if title is None:
            flags[0] = "1"
        items.append("|".join([item, dated(title, year), released, "", "http://x", *flags]))
    (folder / "u.item").write_text("\n".join(items) + "\n", encoding="latin-1")


def write_recbole(folder: Path, rows: Sequence[Row]) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    lines = [header, *("\t".join(map(str, row)) for row in rows)]
    (folder / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for item, title, year, genres in ITEMS:
        values = (item, title or "unkonwn", str(year or "unkonwn"), " ".join(genres or ["unknown"]))
        items.append("\t".join(values))
    (folder / "ml-100k.item").write_text("\n".join(items) + "\n", encoding="utf-8")


def write_movielens_1m(folder: Path, rows: Sequence[Row]) -> None:
    lines = ["::".join(map(str, row)) for row in rows]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    items = [
        f"{item}::{dated(title, year)}::{'|'.join(genres) or '(no genres listed)'}"
        for item, title, year, genres in ITEMS
    ]
    (folder / "movies.dat").write_text("\n".join(items) + "\n", encoding="latin-1")


def write_latest_small(folder: Path, rows: Sequence[Row]) -> None:
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in rows)]
    (folder / "ratings.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    items = ["movieId,title,genres"]
    for item, title, year, genres in ITEMS:
        named = dated(title, year)
        quoted = f'"{named}"' if "," in named else named
        items.append(f"{item},{quoted},{'|'.join(genres) or '(no genres listed)'}")
    (folder / "movies.csv").write_bytes("\r\n".join([*items, ""]).encode())


def write_amazon_2014(folder: Path, rows: Sequence[Row]) -> None:
    reviews = [
        json.dumps(
            {
                "reviewerID": user,
                "asin": item,
                "reviewText": "so so",
                "overall": float(rating),
                "unixReviewTime": time,
            }
        )
        for user, item, rating, time in rows
    ]
    write_gzip(folder / "reviews_Beauty_5.json.gz", reviews)
    metadata = []
    for item, title, year, genres in ITEMS:
        fields: dict[str, object] = {"asin": item, "related": {"also_bought": ["10", "20"]}}
        if title is not None:
            fields |= {"title": title, "price": float(year or 0), "brand": "Bell's"}
            fields["categories"] = [["Beauty", genres[0]], ["Beauty", genres[-1]]]
        metadata.append(repr(fields))
    write_gzip(folder / "meta_Beauty.json.gz", metadata)


def write_amazon_ratings(folder: Path, rows: Sequence[Row]) -> None:
    """Write the ratings files of 2014, which have no review texts."""
    write_amazon_2014(folder, rows)
    (folder / "reviews_Beauty_5.json.gz").unlink()
    lines = [f"{user},{item},{rating}.0,{time}" for user, item, rating, time in rows]
    (folder / "ratings_Beauty.csv").write_text("\n".join(lines) + "\n")


def write_amazon_2018(folder: Path, rows: Sequence[Row]) -> None:
    reviews = [
        json.dumps(
            {
                "overall": float(rating),
                "reviewerID": user,
                "asin": item,
                "style": {"Size:": " 50"},
                "unixReviewTime": time,
            }
        )
        for user, item, rating, time in rows
    ]
    write_gzip(folder / "Gift_Cards_5.json.gz", reviews)
    metadata = []
    for item, title, year, genres in ITEMS:
        fields: dict[str, object] = {"asin": item, "also_buy": [], "description": [], "price": ""}
        if title is not None:
            fields |= {"title": title, "price": f"${year}.00", "brand": "Bell's"}
            fields |= {"category": ["Beauty", genres[0]], "description": ["One &amp;", "two."]}
        else:
            fields["title"] = '<span id="productTitle" class="a-size-large"></span>'
        metadata.append(json.dumps(fields))
    write_gzip(folder / "meta_Gift_Cards.json.gz", metadata)


def write_amazon_2023(folder: Path, rows: Sequence[Row]) -> None:
    reviews = [
        json.dumps(
            {
                "rating": float(rating),
                "title": "Five stars",
                "asin": f"{item}-blue",
                "parent_asin": item,
                "user_id": user,
                "timestamp": 1000 * time,
                "verified_purchase": True,
            }
        )
        for user, item, rating, time in rows
    ]
    write_gzip(folder / "All_Beauty.jsonl.gz", reviews)
    metadata = []
    for item, title, year, genres in ITEMS:
        fields: dict[str, object] = {"parent_asin": item, "title": title, "price": None}
        if title is not None:
            fields |= {"price": float(year or 0), "store": "Bell's", "features": ["Soft"]}
            fields |= {"categories": ["Beauty", genres[0]], "description": ["One", "two."]}
        metadata.append(json.dumps(fields))
    write_gzip(folder / "meta_All_Beauty.jsonl.gz", metadata)


def write_amazon_2023_splits(folder: Path, rows: Sequence[Row]) -> None:
    write_amazon_2023(folder, rows)
    (folder / "All_Beauty.jsonl.gz").unlink()
    by_user: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[3]):
        by_user.setdefault(row[0], []).append(row)
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user, own in by_user.items():
        for place, (_, item, rating, time) in enumerate(own):
            part = {len(own) - 1: "test", len(own) - 2: "valid"}.get(place, "train")
            before = " ".join(earlier[1] for earlier in own[:place])
            parts[part].append(f"{user},{item},{rating}.0,{1000 * time},{before}")
    for part, lines in parts.items():
        header = "user_id,parent_asin,rating,timestamp,history"
        write_gzip(folder / f"All_Beauty.{part}.csv.gz", [header, *lines])


def write_gzip(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


WRITERS: dict[str, Writer] = {
    "movielens-100k": write_movielens_100k,
    "movielens-100k as atomic files": write_recbole,
    "recbole": write_recbole,
    "movielens-1m": write_movielens_1m,
    "movielens-latest-small": write_latest_small,
    "amazon2014/Beauty": write_amazon_2014,
    "amazon2014/Beauty as ratings": write_amazon_ratings,
    "amazon2018/Gift_Cards": write_amazon_2018,
    "amazon2023/All_Beauty": write_amazon_2023,
    "amazon2023/All_Beauty as splits": write_amazon_2023_splits,
}


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny data set, or other rows, in a format, and return the folder."""

    def write(name: str, rows: Sequence[Row] = ROWS, folder: str = "raw") -> Path:
        target = tmp_path / folder
        target.mkdir(exist_ok=True)
        WRITERS[name](target, rows)
        return target

    return write


@dataclass
class FileServer:
    """A server of one file on 127.0.0.1. The path of a request chooses correct or faulty answers.

    ``/whole/…`` sends the file. ``/cut/…`` sends half of the requested bytes, and ``/cut-once/…``
    does so only for the first request. ``/stall/…`` sends half and then nothing. ``/changed/…``
    sends half of another file each time. ``/unsized/…`` sends the file without its length.
    ``/moved/…`` redirects, and ``/page/…`` sends HTML. All other paths answer 404.
    """

    address: str
    content: bytes = b""
    md5: str | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    # Requests to this computer must not go through a proxy, which cannot reach the server.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = FileServer("")
    stop = threading.Event()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            way = self.path.split("/")[-2]
            if self.path.endswith(".md5"):
                self.answer_md5()
                return
            wanted = self.headers.get("Range")
            earlier = [path for path, _ in state.requests if path == self.path]
            state.requests.append((self.path, wanted))
            if way == "moved":
                self.send_response(302)
                self.send_header("Location", "/whole/" + self.path.split("/")[-1])
                self.end_headers()
                return
            if way not in ("whole", "cut", "cut-once", "stall", "page", "changed", "unsized"):
                self.send_error(404)
                return
            content = b"<!doctype html><p>log in" if way == "page" else state.content
            if way == "changed":
                content = content + b"!" * len(earlier)
            tag = f'"{len(content)}"'
            start = 0
            if wanted and self.headers.get("If-Range") == tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("ETag", tag)
            body = content[start:]
            if way != "unsized":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if way in ("cut", "stall", "changed") or (way == "cut-once" and not earlier):
                body = body[: len(body) // 2]
            self.wfile.write(body)
            if way == "stall":
                self.wfile.flush()
                stop.wait(5)

        def answer_md5(self) -> None:
            if state.md5 is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"MD5 (file) = {state.md5}\n".encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing, so that the output of the tests stays clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    yield state
    stop.set()
    server.shutdown()
    thread.join()
    server.server_close()

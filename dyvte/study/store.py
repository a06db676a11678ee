"""Numbers of each question, written part by part, so that an interrupted run goes on where it stopped.

A finished study is ``FOLDER/NAME.npz`` (arrays with one row for each question) and ``FOLDER/NAME.json`` (what they
mean and where they come from). Until then the parts lie in ``FOLDER/NAME.parts``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class SampleStore:
    """The results of one study in a folder. Results of a run with other settings are replaced.

    Args:
        folder, name: where the files are.
        settings: digest of all that the results depend on.

    Attributes:
        kept: how many questions are there already.
        complete: whether the study is finished; nothing is left to do then.
    """

    def __init__(self, folder: Path, name: str, settings: str) -> None:
        self.settings = settings
        self._arrays, self._manifest = folder / f"{name}.npz", folder / f"{name}.json"
        self._parts = folder / f"{name}.parts"
        self.complete = self._is_complete()
        self.kept = 0
        if self.complete:
            return
        marker = self._parts / "settings"
        if self._parts.is_dir() and (not marker.is_file() or marker.read_text() != settings):
            logger.warning("%s holds parts of another run, which are removed", self._parts)
            shutil.rmtree(self._parts)
        self._parts.mkdir(parents=True, exist_ok=True)
        marker.write_text(settings)
        self.kept = self._count()

    def append(self, arrays: dict[str, NDArray]) -> None:
        """Write the next questions: arrays whose first dimension is the same number of them."""
        path = self._parts / f"{self.kept:08d}.npz"
        _write(path, arrays)
        self.kept += len(next(iter(arrays.values())))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Join the parts into the final files; the manifest comes last, and makes the study complete."""
        parts = [dict(np.load(path)) for path in sorted(self._parts.glob("*.npz"))]
        self._manifest.unlink(missing_ok=True)
        _write(self._arrays, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        content = {**manifest, "samples": self.kept, "settings_sha256": self.settings}
        partial = self._manifest.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._manifest)
        shutil.rmtree(self._parts)
        self.complete = True

    def _is_complete(self) -> bool:
        if not self._manifest.is_file() or not self._arrays.is_file():
            return False
        return json.loads(self._manifest.read_text(encoding="utf-8")).get("settings_sha256") == self.settings

    def _count(self) -> int:
        """Questions in the parts, in one run from the first; a part after a gap is removed."""
        count = 0
        for path in sorted(self._parts.glob("*.npz")):
            if int(path.stem) != count:
                path.unlink()
                continue
            with np.load(path) as part:
                count += len(part[part.files[0]])
        return count


def read_study(path: str | Path, study: str) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """(manifest, arrays) of a finished study.

    Args:
        path: its npz or JSON file, or a folder that holds ``STUDY.npz``.
        study: which study it has to be.

    Raises:
        FileNotFoundError: it is not there or not finished.
        ValueError: the files are broken, or of another study.
    """
    path = Path(path)
    arrays = (path / study if path.is_dir() else path).with_suffix(".npz")
    manifest = arrays.with_suffix(".json")
    for file in (arrays, manifest):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} not found; python -m dyvte.study.{study} writes it when it ends."
            )
    try:
        described = json.loads(manifest.read_text(encoding="utf-8"))
        with np.load(arrays) as content:
            loaded = dict(content)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{arrays} and its JSON file cannot be read ({error}); run the study again."
        ) from error
    if not isinstance(described, dict) or described.get("study") != study:
        raise ValueError(f"{manifest} is not of python -m dyvte.study.{study}.")
    return described, loaded


def _write(path: Path, arrays: dict[str, NDArray]) -> None:
    """Write an npz file whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)

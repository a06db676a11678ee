"""The files of studies: numbers of each question, written part by part so that an interrupted run resumes.

A finished study is ``FOLDER/NAME.npz`` (arrays with one row for each question) and ``FOLDER/NAME.json`` (their
definitions and provenance). Until then the parts lie in ``FOLDER/NAME.parts``.

Called throughout :mod:`dyvte.study`.
"""

from __future__ import annotations

import logging
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dyvte.io import read_json_object, read_text, whole_file, write_json, write_whole
from dyvte.report.plotting import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class StudyWriter:
    """Writes the results of one study. Results of a run with other settings are replaced.

    Args:
        folder, name: where the files are.
        settings: digest of all that the results depend on.

    Attributes:
        kept: number of questions that earlier runs have written.
        complete: whether the study is finished; nothing is left to do then.
    """

    def __init__(self, folder: Path, name: str, settings: str) -> None:
        self.settings = settings
        self._arrays, self._manifest = folder / f"{name}.npz", folder / f"{name}.json"
        self._parts = folder / f"{name}.parts"
        self.kept = 0
        self.complete = self._arrays.is_file() and has_settings(self._manifest, settings)
        if self.complete:
            return
        marker = self._parts / "settings"
        if self._parts.is_dir() and (not marker.is_file() or read_text(marker) != settings):
            logger.warning("%s holds parts of another run, which are removed", self._parts)
            shutil.rmtree(self._parts)
        write_whole(marker, settings)
        self.kept = self._count()

    def append(self, arrays: dict[str, NDArray]) -> None:
        """Write the next questions: arrays whose first dimension is the number of these questions."""
        _write(self._parts / f"{self.kept:08d}.npz", arrays)
        self.kept += len(next(iter(arrays.values())))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Join the parts into the final files; the manifest comes last, and makes the study complete."""
        parts = [dict(np.load(path)) for path in sorted(self._parts.glob("*.npz"))]
        self._manifest.unlink(missing_ok=True)
        _write(self._arrays, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        write_json(self._manifest, {**manifest, "samples": self.kept, "settings_sha256": self.settings})
        shutil.rmtree(self._parts)

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


def has_settings(path: Path, settings: str) -> bool:
    """Whether a JSON file is there and comes from a run with these settings."""
    return path.is_file() and read_json_object(path).get("settings_sha256") == settings


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
        described = read_json_object(manifest)
        with np.load(arrays) as content:
            loaded = dict(content)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{arrays} or its JSON file is broken ({error}); run the study again.") from error
    if described.get("study") != study:
        raise ValueError(f"{manifest} is not of python -m dyvte.study.{study}.")
    return described, loaded


def write_result(folder: Path, name: str, numbers: dict[str, Any], text: str, figure: Figure) -> None:
    """Write numbers as JSON, a text as Markdown and a figure as PNG and PDF, and print the text."""
    write_json(folder / f"{name}.json", numbers)
    write_whole(folder / f"{name}.md", text)
    save(figure, folder / name)
    print(text, end="")


def _write(path: Path, arrays: dict[str, NDArray]) -> None:
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

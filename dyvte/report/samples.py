"""A page to look at answers one by one: image, question, the answers of two runs, exit layers, right or wrong.

python -m dyvte.report.samples WITHOUT WITH --benchmark NAME --data-dir DIR --out samples.html
python -m dyvte.report.samples WITHOUT WITH --question-file FILE --image-folder DIR --out samples.html

WITHOUT and WITH are answers files, or the folders that ``scripts/v1_5/eval/*.sh`` fills; a ``scores.json`` beside the
answers gives right or wrong. The page needs no other file and no network. All that comes from the files reaches it as
data in JSON, which its one script, the only one that its policy allows, writes out as text. Larger sets give several
such pages, linked to each other.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dyvte import cli
from dyvte.benchmarks import BENCHMARKS, get_benchmark
from dyvte.benchmarks.files import ID, misfit, read_answers
from dyvte.cli import extra
from dyvte.decoding.report import PrefillReport
from dyvte.engine.questions import JSON_LINES, Item, load_visual, naming
from dyvte.engine.run import default_workers
from dyvte.engine.video import Video, VideoFile
from dyvte.io import read_json, write_whole
from dyvte.report.examples_page import render

with extra("study"):
    from markupsafe import Markup

MERGED, SCORES = "merge.jsonl", "scores.json"
"""What an evaluation's folder calls its answers, and the score of each (:mod:`dyvte.report.record`)."""
LONGEST_SIDE = 224
PER_FILE = 5000
Key = tuple[int | float | str, int]
"""A question's id, and how many questions before it have the same: MME has two questions of each name."""


@dataclass(frozen=True)
class Shown:
    """One answer. ``exit``: layer, or None; ``measured``: whether that is known; ``score``: 0 to 1 where known."""

    text: str
    exit: int | None
    measured: bool
    score: float | None


def keyed(ids: Iterable[Any]) -> list[Key]:
    """The key of each question of a file, by the ids in its order."""
    seen: Counter[Any] = Counter()
    keys: list[Key] = []
    for name in ids:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def read_shown(place: Path) -> dict[Key, Shown]:
    """The answers of a file or of an evaluation's folder, with the scores beside them.

    Raises:
        FileNotFoundError, ValueError: there are no answers, or a file is broken.
    """
    path = place / MERGED if place.is_dir() else place
    answers = read_answers(path)
    scores: dict[Key, float] = {}
    if (file := path.with_name(SCORES)).is_file():
        content = read_json(file)
        if wrong := misfit(content, [{"question_id": ID, "score": float | int}], file):
            raise ValueError(f"{wrong}; python -m dyvte.report.record --scores writes it")
        keys = keyed(row["question_id"] for row in content)
        scores = {key: row["score"] for key, row in zip(keys, content, strict=True)}
    shown: dict[Key, Shown] = {}
    for key, answer in zip(keyed(answer["question_id"] for answer in answers), answers, strict=True):
        metadata = answer.get("metadata")  # LLaVA's own commands leave it empty
        report = PrefillReport.from_dict(metadata, f"{path}, metadata of {key[0]}") if metadata else None
        shown[key] = Shown(
            answer["text"], report.exit_layer if report else None, bool(report), scores.get(key)
        )
    return shown


def pair_up(
    items: Iterable[Item], without: Mapping[Key, Shown], with_exit: Mapping[Key, Shown]
) -> list[tuple[Item, tuple[Shown, Shown]]]:
    """The questions that have both answers, in the order of the questions.

    Raises:
        ValueError: none has.
    """
    items = list(items)
    keys = keyed(item.head["question_id"] for item in items)
    found = [
        (item, (without[key], with_exit[key]))
        for key, item in zip(keys, items, strict=True)
        if key in without and key in with_exit
    ]
    if not found:
        raise ValueError("no question has an answer in both files: they are of other questions")
    return found


def thumbnails(items: Iterable[Item], folder: str | Path, side: int) -> dict[str | bytes | VideoFile, str]:
    """The images of some questions, and the middle frames of their videos, each once, as base64 JPEGs no larger than
    ``side``, by what the questions call them.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read; the message names the question.
    """
    first: dict[str | bytes | VideoFile, Item] = {}
    for item in items:
        for source in item.images:
            first.setdefault(source, item)

    def encode(source: str | bytes | VideoFile, item: Item) -> str:
        with naming(item):
            visual = load_visual(source, folder)
        image = visual.frames[len(visual.frames) // 2] if isinstance(visual, Video) else visual
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=75)
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    with ThreadPoolExecutor(default_workers()) as pool:  # Pillow leaves Python's lock to others
        return dict(zip(first, pool.map(encode, first.keys(), first.values()), strict=True))


def pages_of(
    pairs: Sequence[tuple[Item, tuple[Shown, Shown]]],
    folder: str | Path,
    names: Sequence[str],
    title: str,
    side: int,
) -> Iterable[str]:
    """The HTML of each page, one for each of the file ``names``; all have equally many questions, but the last."""
    script = render("samples.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    size = -(-len(pairs) // len(names))
    for number, name in enumerate(names):
        part = pairs[number * size : (number + 1) * size]
        images = thumbnails((item for item, _ in part), folder, side)
        index = {source: place for place, source in enumerate(images)}
        samples = [
            {
                "id": item.head["question_id"],
                "question": item.text,
                "images": [index[source] for source in item.images],
                "answers": [*map(asdict, answers)],  # without exit, with exit
            }
            for item, answers in part
        ]
        yield render(
            "samples.html",
            title=title,
            data={"samples": samples, "images": [*images.values()]},
            first=number * size + 1,
            total=len(pairs),
            pages=names,
            page=name,
            script=Markup(script),  # noqa: S704 - our own file
            digest=digest,
        )


def write_samples(options: argparse.Namespace) -> None:
    if options.per_file < 1 or options.side < 1:
        raise ValueError("--per-file and --side must be positive")
    if options.benchmark:
        if options.data_dir is None:
            raise ValueError("--benchmark needs --data-dir, the benchmark's folder")
        benchmark = get_benchmark(options.benchmark)
        read, title = benchmark.questions.read, benchmark.title
        questions, folder = (
            options.data_dir / benchmark.question_file,
            options.data_dir / benchmark.image_folder,
        )
    elif options.question_file:
        read, title = JSON_LINES.read, options.question_file.stem
        questions, folder = options.question_file, options.image_folder
    else:
        raise ValueError("give --benchmark with --data-dir, or --question-file with --image-folder")
    items = read(argparse.Namespace(question_file=str(questions)))
    pairs = pair_up(items, read_shown(options.without), read_shown(options.with_exit))
    count = -(-len(pairs) // options.per_file)
    out: Path = options.out
    names = [out.name, *(f"{out.stem}-{number}{out.suffix}" for number in range(2, count + 1))]
    for name, page in zip(names, pages_of(pairs, folder, names, title, options.side), strict=True):
        write_whole(out.with_name(name), page)
        print(f"samples: {out.with_name(name)}")
    if len(pairs) < len(items):
        print(f"{len(items) - len(pairs)} of {len(items)} questions lack an answer in one of the files")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.samples", description="Look at the answers of two runs one by one."
    )
    add = parser.add_argument
    add("without", type=Path, help="answers without exit: a file, or an evaluation's folder")
    add("with_exit", metavar="with", type=Path, help="answers with exit, to the same questions")
    add("--benchmark", choices=sorted(BENCHMARKS))
    add("--data-dir", type=Path, help="the benchmark's folder")
    add("--question-file", type=Path, help="questions in LLaVA's JSON lines, where they are of no benchmark")
    add("--image-folder", type=Path, default=Path())
    add("--out", type=Path, required=True, help="HTML file to write")
    add("--side", type=int, default=LONGEST_SIDE, help="pixels of an image's longer side (%(default)s)")
    add("--per-file", type=int, default=PER_FILE, help="questions in a file (%(default)s)")
    cli.run(parser, write_samples, argv)


if __name__ == "__main__":
    main()

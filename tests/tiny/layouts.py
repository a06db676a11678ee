"""Strict readers of five benchmarks' layouts.

Each takes the benchmark's folder and returns (question id, prompt, image, what the annotation says, right answer)
for every question the model is asked, in the order of the question file.
"""

import csv
import json
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from dyvte.tiny.questions import LETTER_ANSWER, SHORT_ANSWER
from tests.tiny.seen import WORDS


def format_of(path: Path) -> str | None:
    with Image.open(path) as image:
        assert image.size == (72, 72) and image.mode == "RGB"
        return image.format


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_vqav2(folder: Path) -> list[tuple]:
    notes = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text())
    asked = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    header = {"info", "task_type", "data_type", "data_subtype", "license"}
    assert set(notes) == header | {"annotations"} and set(asked) == header | {"questions"}
    assert (notes["data_type"], notes["data_subtype"], asked["task_type"]) == (
        "mscoco",
        "val2014",
        "Open-Ended",
    )
    found = []
    rows = read_lines(folder / "llava_vqav2_mscoco_val2014.jsonl")
    for row, note, question in zip(rows, notes["annotations"], asked["questions"], strict=True):
        assert set(row) == {"question_id", "image", "text", "category"} and type(row["question_id"]) is int
        assert set(note) == {
            "question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers",
        }  # fmt: skip
        assert set(question) == {"image_id", "question", "question_id"}
        assert row["question_id"] == note["question_id"] == question["question_id"]
        assert note["image_id"] == question["image_id"]
        assert row["image"] == f"COCO_val2014_{note['image_id']:012d}.jpg"
        assert row["text"] == f"{question['question']}\n{SHORT_ANSWER}"
        assert question["question"].lower().startswith(note["question_type"])
        assert [set(a) for a in note["answers"]] == [{"answer", "answer_confidence", "answer_id"}] * 10
        assert [a["answer_id"] for a in note["answers"]] == list(range(1, 11))
        assert {a["answer_confidence"] for a in note["answers"]} <= {"yes", "maybe", "no"}
        said = Counter(a["answer"] for a in note["answers"])
        assert said.most_common(1)[0][0] == note["multiple_choice_answer"]
        assert {WORDS.get(word, word) for word in said} == {note["multiple_choice_answer"]}
        found.append(
            (
                row["question_id"],
                row["text"],
                row["image"],
                question["question"],
                note["multiple_choice_answer"],
            )
        )
    return found


def read_sqa(folder: Path) -> list[tuple]:
    problems, splits, rows = (
        json.loads((folder / name).read_text())
        for name in ("problems.json", "pid_splits.json", "llava_test_CQM-A.json")
    )
    assert set(splits) == {"train", "val", "test", "trainval", "minitrain", "minival", "minitest"}
    assert [row["id"] for row in rows] == splits["test"] == list(problems)
    assert set(splits["minitest"]) <= set(splits["test"])
    found = []
    for row in rows:
        problem = problems[row["id"]]
        assert set(problem) == {
            "question", "choices", "answer", "hint", "image", "task", "grade", "subject", "topic", "category",
            "skill", "lecture", "solution", "split",
        }  # fmt: skip
        assert problem["split"] == "test" and re.fullmatch(r"grade([1-9]|1[0-2])", problem["grade"])
        assert 2 <= len(problem["choices"]) == len(set(problem["choices"])) <= 5
        image = problem["image"]
        assert row.get("image", None) == (f"{row['id']}/image.png" if image else None)
        context = [f"Context: {problem['hint']}"] if problem["hint"] else []
        listed = [f"{'ABCDE'[place]}. {option}" for place, option in enumerate(problem["choices"])]
        asked = "\n".join([*(["<image>"] if image else []), *context, problem["question"], *listed])
        letter = "ABCDE"[problem["answer"]]
        assert row["conversations"] == [{"from": "human", "value": asked}, {"from": "gpt", "value": letter}]
        found.append((row["id"], f"{asked}\n{LETTER_ANSWER}", row.get("image"), problem, letter))
    return found


MME_SIDE_BY_SIDE = {
    "existence", "count", "position", "color", "OCR", "commonsense_reasoning", "numerical_calculation",
    "text_translation", "code_reasoning",
}  # fmt: skip
MME_APART = {"posters", "celebrity", "scene", "landmark", "artwork"}


def read_mme(folder: Path) -> list[tuple]:
    release = folder / "MME_Benchmark_release_version"
    assert {path.name for path in release.iterdir()} == MME_SIDE_BY_SIDE | MME_APART
    rows = read_lines(folder / "llava_mme.jsonl")
    found = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert set(first) == {"question_id", "image", "text", "category"}
        assert first["question_id"] == second["question_id"] == first["image"] == second["image"]
        task, *middle, name = first["image"].split("/")
        assert task == first["category"] == second["category"]
        assert middle == (["images"] if task in MME_APART else [])
        texts = release / task / ("questions_answers_YN" if middle else "") / f"{name.split('.')[0]}.txt"
        lines = [line.split("\t") for line in texts.read_text().removesuffix("\n").split("\n")]
        assert sorted(label for _, label in lines) == ["No", "Yes"]
        for row, (told, label) in zip((first, second), lines, strict=True):
            question = told.removesuffix(" Please answer yes or no.")
            assert question != told and row["text"] == f"{question}\n{SHORT_ANSWER}"
            found.append((row["question_id"], row["text"], row["image"], question, label))
    return found


def read_mmbench(folder: Path) -> list[tuple]:
    with (folder / "mmbench_dev_20230712.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", strict=True))
    assert list(rows[0]) == [
        "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
        "comment", "split",
    ]  # fmt: skip
    found = []
    for row in rows:
        options = [row[letter] for letter in "ABCD" if row[letter]]
        assert len(options) >= 2 and options == [row[letter] for letter in "ABCD"[: len(options)]]
        listed = [f"{'ABCD'[place]}. {option}" for place, option in enumerate(options)]
        prompt = "\n".join([*([row["hint"]] if row["hint"] else []), row["question"], *listed])
        found.append((int(row["index"]), prompt, row["image"], {**row, "options": options}, row["answer"]))
    return found


def read_seed(folder: Path) -> list[tuple]:
    notes = json.loads((folder / "SEED-Bench.json").read_text())
    assert set(notes) == {"question_type", "questions"}
    assert sorted(notes["question_type"].values()) == list(range(1, 13))
    names = {number: name for name, number in notes["question_type"].items()}
    found = []
    for row, note in zip(read_lines(folder / "llava-seed-bench.jsonl"), notes["questions"], strict=True):
        number, name = note["question_type_id"], note["question_id"]
        keys = {"question_id", "question_type_id", "data_type", "data_id", "question", "answer"}
        keys |= {f"choice_{letter}" for letter in "abcd"} | ({"segment"} if number >= 11 else set())
        assert set(note) == keys and type(name) is str
        assert set(row) == {"image", "text", "category", "question_id"} and row["category"] == names[number]
        assert note["data_type"] == ("video" if number >= 10 else "image")
        if number >= 10:
            assert row["question_id"] == name and re.fullmatch(r"v\d+", name)
            assert row["image"] == f"SEED-Bench-video-image/{number}_{name}.png"
            assert format_of(folder / row["image"]) == "PNG"
        else:
            assert type(row["question_id"]) is int and row["question_id"] == int(name)
            assert row["image"] == f"SEED-Bench-image/{note['data_id']}"
            assert format_of(folder / row["image"]) == "JPEG"
        listed = [f"{letter}. {note[f'choice_{letter.lower()}']}" for letter in "ABCD"]
        assert row["text"] == "\n".join([note["question"], *listed, LETTER_ANSWER])
        found.append((row["question_id"], row["text"], row["image"], note, note["answer"]))
    return found

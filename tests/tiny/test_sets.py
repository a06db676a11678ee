"""The evaluation sets: each read back strictly by its layout, and answered anew from the captions of its scenes."""

import base64
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dyvte.benchmarks import get_benchmark
from dyvte.benchmarks.check import check, ready
from dyvte.tiny.questions import LETTER_ANSWER, Question
from dyvte.tiny.scenes import COLORS, draw, encode
from dyvte.tiny.sets import SETS
from dyvte.tiny.sets.__main__ import main
from dyvte.tiny.sets.options import Choice, wrong_answers
from tests.tiny import layouts
from tests.tiny.seen import WORDS, Seen, solve

QUESTIONS = 84  # three images for each task of MME
NAMES = ("vqav2", "sqa", "mme", "mmbench", "seed", "mmvet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets")
    for name in NAMES:
        folder, write = SETS[name]
        write(out / folder, QUESTIONS)
    return out


def seen_by(seed: int, count: int, image_format: str = "JPEG") -> dict[bytes, Seen]:
    """Image files of the first scenes of a seed, and what they show."""
    scenes = [draw("eval", seed, index) for index in range(count)]
    return {
        content: Seen(scene.caption())
        for content, scene in zip(encode(scenes, image_format), scenes, strict=True)
    }


def even(values: list, of: int) -> bool:
    """Whether each of so many values occurs, equally often but for one block that was begun."""
    counts = Counter(values)
    return len(counts) == of and max(counts.values()) - min(counts.values()) <= 1


def test_vqav2(made: Path) -> None:
    folder = made / "vqav2"
    truth = layouts.read_vqav2(folder)
    assert len(truth) == len({name for name, *_ in truth}) == QUESTIONS
    scenes = seen_by(5, QUESTIONS)
    for _, _, image, question, answer in truth:
        assert solve(scenes[(folder / "val2014" / image).read_bytes()], question) == answer
    notes = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    types = {"yes/no": {"yes", "no"}, "other": set(COLORS), "number": {str(number) for number in range(10)}}
    assert {note["answer_type"] for note in notes} == set(types)
    assert all(note["multiple_choice_answer"] in types[note["answer_type"]] for note in notes)
    assert any(len({a["answer"] for a in note["answers"]}) == 2 for note in notes)  # number words


def test_vqav2_test_splits_have_questions_and_images_only(made: Path) -> None:
    folder = made / "vqav2"
    test, dev = (
        layouts.read_lines(folder / f"llava_vqav2_mscoco_{split}.jsonl")
        for split in ("test2015", "test-dev2015")
    )
    ids = [row["question_id"] for row in test]
    assert len(set(ids)) == len(test) == 2 * len(dev) > 0 and all(type(name) is int for name in ids)
    assert all(row in test for row in dev)
    assert all(re.fullmatch(r"COCO_test2015_\d{12}\.jpg", row["image"]) for row in test)
    assert {layouts.format_of(folder / "test2015" / row["image"]) for row in test} == {"JPEG"}


def test_sqa(made: Path) -> None:
    folder = made / "scienceqa"
    truth = layouts.read_sqa(folder)
    assert len(truth) == QUESTIONS
    scenes = seen_by(7, 2 * QUESTIONS, "PNG")
    for _, _, image, problem, _ in truth:
        seen = scenes[(folder / "images/test" / image).read_bytes()] if image else Seen("center red 0")
        if told := re.fullmatch(r"A picture shows (.*)\.", problem["hint"]):
            assert not image
            seen = Seen(told[1])
        assert problem["choices"][problem["answer"]] == solve(seen, problem["question"])
        if narrow := re.fullmatch(r"It is (\d) or (\d)\.", problem["hint"]):
            assert solve(seen, problem["question"]) in narrow.groups()
            assert set(narrow.groups()) <= set(problem["choices"])
        assert bool(told or narrow) == bool(problem["hint"])
    for size in (2, 3, 4, 5):
        places = [problem["answer"] for *_, problem, _ in truth if len(problem["choices"]) == size]
        assert even(places, size), size
    with_image = sum(image is not None for _, _, image, *_ in truth)
    assert 0.5 < with_image / len(truth) < 0.8
    assert {problem["subject"] for *_, problem, _ in truth} == {
        "natural science", "social science", "language science",
    }  # fmt: skip


def test_mme(made: Path) -> None:
    truth = layouts.read_mme(made / "MME")
    assert set(Counter(name.split("/")[0] for name, *_ in truth).values()) == {QUESTIONS // 14}
    scenes = seen_by(8, 4 * QUESTIONS)
    for _, _, image, question, label in truth:
        content = (made / "MME/MME_Benchmark_release_version" / image).read_bytes()
        assert solve(scenes[content], question) == label.lower(), question
    assert 0.3 < np.mean([label == "Yes" for *_, label in truth[::2]]) < 0.7  # either comes first
    pairs = {}
    for image, _, _, question, _ in truth:
        pairs.setdefault(image, set()).add(question)
    assert all(len(pair) == 2 for pair in pairs.values())


def test_mmbench(made: Path) -> None:
    truth = layouts.read_mmbench(made / "mmbench")
    assert QUESTIONS <= len(truth) < QUESTIONS + 4
    scenes = seen_by(9, QUESTIONS)
    for _, _, image, row, letter in truth:
        seen = scenes[base64.b64decode(image, validate=True)]
        assert row["options"]["ABCD".index(letter)] == solve(seen, row["question"])
        assert row["split"] == "dev"
    groups: dict[int, list] = {}
    for index, _, image, row, letter in truth:
        assert index // 1_000_000 == len(groups.setdefault(index % 1_000_000, []))
        groups[index % 1_000_000].append((row["options"], letter, image))
    for group in groups.values():
        assert len(group) == len(group[0][0])
        assert {letter for _, letter, _ in group} == set("ABCD"[: len(group)])
        for (before, _, image), (after, _, same) in zip(group, group[1:], strict=False):
            assert after == [before[-1], *before[:-1]] and image == same
    indices = [index for index, *_ in truth]
    assert [index // 1_000_000 for index in indices] == sorted(index // 1_000_000 for index in indices)
    assert {len(group) for group in groups.values()} == {2, 3, 4}
    assert len({row["l2-category"] for *_, row, _ in truth}) == 6


def test_seed(made: Path) -> None:
    folder = made / "seed_bench"
    truth = layouts.read_seed(folder)
    assert len({name for name, *_ in truth}) == len(truth) == QUESTIONS
    scenes = seen_by(10, 2 * QUESTIONS) | seen_by(10, 2 * QUESTIONS, "PNG")
    for _, _, image, note, letter in truth:
        answer = solve(scenes[(folder / image).read_bytes()], note["question"])
        options = [note[f"choice_{name}"] for name in "abcd"]
        assert options.count(answer) == 1 and options["ABCD".index(letter)] == answer
    assert even([letter for *_, letter in truth], 4)
    assert Counter(note["question_type_id"] for *_, note, _ in truth).keys() == set(range(1, 13))
    assert 0.1 < np.mean([note["data_type"] == "video" for *_, note, _ in truth]) < 0.3


def test_mmvet(made: Path) -> None:
    folder = made / "mm-vet"
    rows, notes = (
        layouts.read_lines(folder / "llava-mm-vet.jsonl"),
        json.loads((folder / "mm-vet.json").read_text()),
    )
    assert [row["question_id"] for row in rows] == list(range(QUESTIONS))
    assert list(notes) == [f"v1_{row['question_id']}" for row in rows]
    scenes = seen_by(11, 2 * QUESTIONS, "PNG")
    for row, note in zip(rows, notes.values(), strict=True):
        assert set(row) == {"question_id", "image", "text", "category"} and row["category"] == "conv"
        assert set(note) == {"imagename", "question", "answer", "imagesource", "capability"}
        assert note["imagename"] == row["image"] == f"v1_{row['question_id']}.png"
        assert note["question"] == row["text"] and "\n" not in row["text"]
        right = solve(scenes[(folder / "images" / row["image"]).read_bytes()], note["question"])
        ways = note["answer"].split("<OR>")
        assert ways[0].replace("<AND>", ", ") == right
        assert [WORDS[way] for way in ways[1:]] == [right] * (len(ways) - 1)
    assert {one for note in notes.values() for one in note["capability"]} == {
        "rec", "ocr", "know", "gen", "spat", "math",
    }  # fmt: skip
    assert any("<OR>" in note["answer"] for note in notes.values())
    assert any("<AND>" in note["answer"] for note in notes.values())


READERS = {
    "vqav2": layouts.read_vqav2,
    "sqa": layouts.read_sqa,
    "mme": layouts.read_mme,
    "mmbench": layouts.read_mmbench,
    "seed": layouts.read_seed,
}


@pytest.mark.parametrize("name", READERS)
def test_right_answers_score_full(made: Path, tmp_path: Path, name: str) -> None:
    benchmark, folder = get_benchmark(name), made / SETS[name][0]
    assert benchmark.folder == folder.name
    rows = [
        {"question_id": name, "prompt": prompt, "text": answer}
        for name, prompt, _, _, answer in READERS[name](folder)
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for variant in benchmark.variants or ("",):
        score = benchmark.score(folder, answers, variant)
        assert not score.remarks
        assert score.value == pytest.approx(2000 if name == "mme" else 100)
        if name == "mme":
            points = [value for part, value in score.parts.items() if part.endswith(".score")]
            assert points == [200] * 14 and score.parts["cognition"] == 800
    rows[0]["text"] = "?"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = benchmark.score(folder, answers)
    assert min(question.score for question in wrong.questions) == 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_missing(made: Path, name: str) -> None:
    findings = check(get_benchmark(name), made / SETS[name][0])
    assert ready(findings), findings


def test_the_first_three_sets_keep_their_questions(tmp_path: Path) -> None:
    expected = {
        "gqa/llava_gqa_testdev_balanced.jsonl": "c27d1a200decda6f",
        "gqa/data/testdev_balanced_questions.json": "fafd4f90f229d05f",
        "pope/llava_pope_test.jsonl": "2f10c6ab251e0fe4",
        "textvqa/llava_textvqa_val_v051_ocr.jsonl": "933937bbf00b4ed3",
        "textvqa/TextVQA_0.5.1_val.json": "4493cf42fa92d889",
    }
    for name in ("gqa", "pope", "textvqa"):
        SETS[name][1](tmp_path / name, 50)
    assert {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16] for name in expected
    } == expected


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["sets", *arguments])
    main()


def test_command_line_writes_the_same_bytes_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--out", str(tmp_path), "--questions", str(QUESTIONS), "--only", *NAMES)
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert all((made / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_command_line_writes_every_set_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--out", str(tmp_path), "--questions", "2", "--heldout", "1")
    assert {path.name for path in tmp_path.iterdir()} == {
        "vqav2", "gqa", "scienceqa", "textvqa", "pope", "MME", "mmbench", "seed_bench", "mm-vet", "heldout",
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [["--only", "coco"], ["--questions", "0"], ["--heldout", "-1"]])
def test_command_line_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, wrong: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--out", str(tmp_path), *wrong)
    assert stopped.value.code == 2 and wrong[0] in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_choices() -> None:
    choice = Choice("What digit is red?", ("3", "5", "7"), 2)
    assert (choice.letter, choice.prompt()) == ("C", f"What digit is red?\nA. 3\nB. 5\nC. 7\n{LETTER_ANSWER}")
    assert choice.rotated(1) == Choice("What digit is red?", ("7", "3", "5"), 0)
    assert wrong_answers(Question("How many digits are red?", "1", "count_color")) == ["0", "2", "3", "4"]
    assert wrong_answers(Question("Which digit is higher, 8 or 7?", "7", "higher")) == ["8"]
    assert wrong_answers(Question("Read the digits in the top row.", "3 7", "read_line"))[:2] == [
        "0 7",
        "1 7",
    ]
    with pytest.raises(ValueError, match="has options already"):
        wrong_answers(Question("What digit is red?\nA. 3", "A", "choice"))

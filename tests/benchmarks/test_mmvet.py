"""MM-Vet's figures from grades: by hand, by a plain computation, and to the last digit."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dyvte.benchmarks import mmvet
from dyvte.benchmarks.mmvet_grades import (
    aggregate,
    csv_text,
    grade_path,
    parse_score,
    source_path,
)
from dyvte.io import write_whole

ROOT = Path(__file__).parents[2]
NEEDED = {"v1_0": ["rec", "ocr"], "v1_1": ["ocr"], "v1_2": ["ocr", "rec"], "v1_3": ["math"]}


def sample(needed):
    return {"imagename": "x.png", "question": "What?", "answer": "a <OR> b", "capability": needed}


def grades_of(scores, contents=None):
    contents = contents or {}
    return {
        key: {
            "model": ["judge"] * len(values),
            "content": contents.get(key, [str(value) for value in values]),
            "score": values,
        }
        for key, values in scores.items()
    }


@pytest.fixture
def data(tmp_path, files):
    """A data folder with four samples."""
    folder = tmp_path / "mm-vet"
    files.json(folder / "mm-vet.json", {key: sample(needed) for key, needed in NEEDED.items()})
    rows = [{"question_id": n, "image": f"v1_{n}.png", "text": "What?", "category": "conv"} for n in range(4)]
    files.lines(folder / "llava-mm-vet.jsonl", rows)
    (folder / "images").mkdir()
    return folder


@pytest.fixture
def answer(tmp_path, files):
    """Write answers; by default one to each sample."""

    def write(rows=((0, "a"), (1, "b"), (2, "c"), (3, "d")), name="run/merge.jsonl"):
        return files.lines(tmp_path / name, [{"question_id": q, "text": t} for q, t in rows])

    return write


def put_grades(answers, grades, rounds, judge="judge", texts=None):
    """Grades beside answers; with ``texts``, the ones they say that they were given for."""
    path = grade_path(answers.parent / "grades", "m", judge, rounds)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(grades))
    if texts is not None:
        source_path(path).write_text(json.dumps({"model": "m", "answers_sha256": mmvet.fingerprint(texts)}))
    return path


TEXTS = {"v1_0": "a", "v1_1": "b", "v1_2": "c", "v1_3": "d"}
TWO_ROUNDS = {"v1_0": [0.5, 1.0], "v1_1": [1.0, 1.0], "v1_2": [0.0, 0.5], "v1_3": [0.2, 0.2]}


def test_figures_by_hand(data, answer):
    answers = answer()
    put_grades(answers, grades_of(TWO_ROUNDS), 2, texts=TEXTS)
    score = mmvet.score(data, answers)
    # Totals: 1.7 / 4 and 2.7 / 4.
    assert score.parts["runs.0"] == pytest.approx(42.5) and score.parts["runs.1"] == pytest.approx(67.5)
    assert score.value == score.parts["total"] == pytest.approx(55.0)
    assert score.parts["std"] == pytest.approx(12.5)  # of the population: half the distance
    assert score.parts["ocr"] == pytest.approx(100 * (1.5 / 3 + 2.5 / 3) / 2)
    assert score.parts["rec"] == pytest.approx(100 * (0.5 / 2 + 1.5 / 2) / 2)
    assert score.parts["math"] == pytest.approx(20.0)
    # ["rec", "ocr"] and ["ocr", "rec"] are one combination; ocr alone is another.
    assert score.parts["integration.ocr_rec"] == pytest.approx(50.0)
    assert score.parts["integration.ocr"] == pytest.approx(100.0)
    assert {q.question_id: q.score for q in score.questions} == {0: 0.75, 1: 1.0, 2: 0.25, 3: 0.2}
    assert score.remarks == [] and "judge" in score.metric
    assert score.report.splitlines()[1].split()[1:6] == ["66.7", "50.0", "20.0", "55.0", "12.5"]


def official(needed, grades, rounds):
    """The official aggregation, spelt out: sums in the order of the grades, division, times 100, mean."""
    figures = {}
    for wanted in ("total", "rec", "ocr", "math"):
        members = [key for key in needed if wanted == "total" or wanted in needed[key]]
        sums = [0.0] * rounds
        for key in grades:
            for i in range(rounds):
                if key in members:
                    sums[i] += grades[key]["score"][i]
        figures[wanted] = (np.array(sums) / len(members) * 100).mean()
    return figures


def test_last_digit_and_order_of_the_grade_file():
    needed = {f"v1_{i}": [["rec", "ocr"], ["ocr"], ["math"]][i % 3] for i in range(60)}
    rng = np.random.default_rng(0)
    scores = {key: [round(float(v), 1) for v in rng.integers(0, 11, 3) / 10] for key in needed}
    seen = set()
    for order in [list(needed), *(list(rng.permutation(list(needed))) for _ in range(5))]:
        grades = grades_of({str(key): scores[key] for key in order})
        totals, expected = aggregate(needed, grades, 3), official(needed, grades, 3)
        for name, value in expected.items():
            assert float(totals.capabilities[name].mean()) == value
        seen.add(float(totals.capabilities["ocr"].mean()))
    assert len(seen) > 1  # the order does matter, else this would prove nothing


def test_official_csv():
    scores = {"v1_0": [0.361] * 3, "v1_1": [0.361, 0.369, 0.365]}
    totals = aggregate({"v1_0": ["rec"], "v1_1": ["rec", "ocr"]}, grades_of(scores), 3)
    assert csv_text("m_gpt-4", totals.rows[0]) == (
        ',rec,ocr,total,std,runs\nm_gpt-4,36.3,36.5,36.3,0.2,"[36.1, 36.5, 36.3]"\n'
    )
    assert csv_text("m", totals.rows[1]).startswith(",rec,rec_ocr,total,std,runs\nm,36.1,36.5,")


def test_nasty_answers(data, answer):
    rows = [(2, "old"), (3, None), ("7", "who?"), (2, "c"), (0, "ÄÖ \ud800")]
    answers = answer(rows)
    texts = {"v1_2": "c", "v1_3": "", "v1_0": "ÄÖ \ud800"}
    grades = grades_of({"v1_0": [0.5], "v1_1": [0.0], "v1_2": [1.0], "v1_3": [0.0]}, {"v1_3": ["no"]})
    put_grades(answers, grades, 1, texts=texts)
    score = mmvet.score(data, answers)
    assert score.value == 37.5 and score.skipped == 1
    remarks = {(remark.question_id, remark.what) for remark in score.remarks}
    about = {question_id: [w for q, w in remarks if q == question_id] for question_id, _ in remarks}
    assert set(about) == {1, 2, 3, "7"} and len(remarks) == 5
    assert "no answer" in about[1][0] and "2 times" in about[2][0] and "left out" in about["7"][0]
    assert any("empty" in what for what in about[3]) and any("no number" in what for what in about[3])
    assert [q.question_id for q in score.questions] == [2, 3, 0, 1]


def test_subset(data, answer, files):
    answers = answer()
    put_grades(answers, grades_of(TWO_ROUNDS), 2, texts=TEXTS)
    with pytest.raises(FileNotFoundError, match="bard_set.json"):
        mmvet.score(data, answers, "bardset")
    files.json(data / "bard_set.json", ["v1_3", "v1_1"])
    score = mmvet.score(data, answers, "bardset")
    assert score.value == pytest.approx(60.0) and score.variant == "bardset" and "rec" not in score.parts
    assert len(score.questions) == 2


def test_grades_must_be_of_these_answers(data, answer):
    answers = answer()
    with pytest.raises(FileNotFoundError, match="has not been graded.*dyvte.benchmarks.judge.*results/"):
        mmvet.score(data, answers)
    path = put_grades(answers, grades_of(TWO_ROUNDS), 2, texts={**TEXTS, "v1_3": "D"})
    with pytest.raises(ValueError, match="grades of other answers"):
        mmvet.score(data, answers)
    answer([(1, "b"), (0, "a"), (3, "D"), (2, "c")])  # the order of answers does not matter
    assert mmvet.score(data, answers).value == pytest.approx(55.0)
    source_path(path).unlink()  # as the official evaluator leaves it
    answer()
    remark = mmvet.score(data, answers).remarks[0]
    assert remark.question_id == path.name and "taken to be these" in remark.what
    answer([(0, "a")])
    with pytest.raises(ValueError, match="'v1_1', which the answers lack"):
        mmvet.score(data, answers)


def test_which_grades(data, answer):
    answers = answer()
    put_grades(answers, grades_of({key: [1.0] for key in TEXTS}), 1, texts=TEXTS)
    path = put_grades(answers, grades_of({**TWO_ROUNDS, "v1_2": [0.0]}), 2, texts=TEXTS)
    with pytest.raises(ValueError, match="1 of 4 samples lack grades of 2 rounds.*v1_2"):
        mmvet.score(data, answers)
    path.write_text(json.dumps(grades_of(TWO_ROUNDS)))
    assert mmvet.score(data, answers).value == pytest.approx(55.0)
    put_grades(answers, grades_of(TWO_ROUNDS), 2, judge="other/judge", texts=TEXTS)
    with pytest.raises(ValueError, match="several grade files.*other_judge"):
        mmvet.score(data, answers)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "grades.json"
    write_whole(path, "old")

    def fail(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "grade",
    [
        7,
        {"model": ["j"], "content": ["1"], "score": [1.5]},
        {"model": ["j"], "content": ["1"], "score": [float("nan")]},
        {"model": ["j"], "content": ["1"], "score": ["1"]},
        {"model": ["j"], "content": [], "score": [1.0]},
        {"model": ["j"], "content": None, "score": [1.0]},
    ],
)
def test_broken_grades(data, answer, grade):
    answers = answer()
    put_grades(answers, {**grades_of(TWO_ROUNDS), "v1_1": grade}, 2, texts=TEXTS)
    with pytest.raises(ValueError, match="runs.json: .*v1_1"):
        mmvet.score(data, answers)


def test_wrong_files(data, answer, files):
    with pytest.raises(ValueError, match="another split or benchmark"):
        mmvet.score(data, answer([("n123", "yes")]))
    broken = answer()
    broken.write_text(broken.read_text() + '{"question_id": 3, "te')
    with pytest.raises(ValueError, match=r"merge.jsonl, line 5"):
        mmvet.score(data, broken)
    files.json(data / "mm-vet.json", {"v1_0": sample(["rec"]), "v1_1": {"question": "?", "answer": "x"}})
    with pytest.raises(ValueError, match=r"mm-vet.json: \['v1_1'\] lacks capability"):
        mmvet.score(data, answer())


def test_check_questions(data, files):
    mmvet.check_questions(data)
    rows = [{"question_id": n, "image": "x", "text": "?"} for n in range(3)]
    files.lines(data / "llava-mm-vet.jsonl", rows)
    with pytest.raises(ValueError, match="lacks 1 samples of mm-vet.json, as 'v1_3'"):
        mmvet.check_questions(data)
    files.lines(data / "llava-mm-vet.jsonl", [*rows, {"question_id": 9, "image": "x", "text": "?"}])
    with pytest.raises(ValueError, match="asks for 'v1_9'"):
        mmvet.check_questions(data)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("0.5", 0.5),
        ("1", 1.0),
        ("0.5\n", 0.5),
        ("0.3 | because", 0.3),
        (" 0.5", None),
        ("0.5.", None),
        ("1.1", None),
        ("-0.1", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_what_counts_as_a_score(content, value):
    assert parse_score(content) == value


def test_submission_is_llavas(answer, tmp_path, monkeypatch):
    source, target = (
        answer([(3, "old"), (0, 'said "é"\nand'), (3, "new"), (1, None)]),
        tmp_path / "results/m.json",
    )
    arguments = ["convert", "--src", str(source), "--dst", str(target)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / "scripts/convert_mmvet_for_eval.py"), run_name="__main__")
    expected = {"v1_3": "new", "v1_0": 'said "é"\nand', "v1_1": ""}
    assert target.read_text() == json.dumps(expected, indent=2)
    source.write_text("{}\n")
    with pytest.raises(SystemExit, match="line 1 lacks question_id"):
        runpy.run_path(str(ROOT / "scripts/convert_mmvet_for_eval.py"), run_name="__main__")


# Answers questions with their number, notes judge and record, and runs the script's other commands once (WHOLE).
STUB = f"""#!{sys.executable}
import json, os, sys
arguments = sys.argv[1:]
flags = dict(zip(arguments[2::2], arguments[3::2]))
if arguments[1] == "llava.eval.model_vqa":
    rows = [json.loads(line) for line in open(flags["--question-file"])]
    with open(flags["--answers-file"], "w") as out:
        for row in rows:
            out.write(json.dumps(dict(question_id=row["question_id"], text=str(row["question_id"]))) + "\\n")
    from tests.fixtures.answering import mark
    mark(flags["--answers-file"])
elif arguments[1] in ("dyvte.benchmarks.judge", "dyvte.report.record"):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(json.dumps(arguments) + "\\n")
elif os.environ.get("WHOLE") or arguments[1] == "dyvte.engine.shards":
    os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
"""


def test_script(data, tmp_path):
    stub, calls, out = tmp_path / "python", tmp_path / "calls", tmp_path / "m-dyvte"
    stub.write_text(STUB)
    stub.chmod(0o755)
    calls.touch()
    names = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PROMPT_FILE", "CUDA_VISIBLE_DEVICES")
    plain = {key: value for key, value in os.environ.items() if key not in names}
    plain |= {"PYTHON": str(stub), "CALLS": str(calls), "DATA": str(data), "OUT": str(out), "MODEL": "m"}

    def run(**settings):
        command = ["bash", str(ROOT / "scripts/v1_5/eval/mmvet.sh")]
        return subprocess.run(command, env={**plain, **settings}, capture_output=True, text=True)

    done = run(OPENAI_API_KEY="sk-secret", WHOLE="1")
    assert done.returncode == 0 and calls.read_text() == "", done.stderr
    assert "Answered, not graded" in done.stdout and "PROMPT_FILE" in done.stdout
    assert json.loads((data / "results/m-dyvte.json").read_text()) == {f"v1_{n}": str(n) for n in range(4)}

    done = run(OPENAI_BASE_URL="http://here/v1", PROMPT_FILE="p.py", ROUNDS="2")
    assert done.returncode == 0, done.stderr
    judged, recorded = map(json.loads, calls.read_text().splitlines())
    assert judged[1] == "dyvte.benchmarks.judge" and recorded[1:3] == ["dyvte.report.record", "mmvet"]
    for flag, value in {"--rounds": "2", "--prompt-file": "p.py", "--name": "m-dyvte"}.items():
        assert judged[judged.index(flag) + 1] == value

    put_grades(out / "merge.jsonl", {}, 1)  # grades from elsewhere are recorded, too
    calls.write_text("")
    assert run().returncode == 0 and json.loads(calls.read_text())[1] == "dyvte.report.record"

"""MME's points, worked out by hand or by a plain second reading of the task files."""

import random

import pytest

from dyvte.benchmarks import mme
from dyvte.benchmarks.mme_pairs import says, score_lines
from tests.fixtures.scripts import script

SUFFIX = "\nAnswer the question using a single word or phrase."
WITH_SUBFOLDERS = ("posters", "celebrity", "scene", "landmark", "artwork")


def write_release(data, images=2, tasks=mme.TASKS):
    """Two questions about each image, the first right with Yes, the second with No; all answers right."""
    answers = []
    for task in tasks:
        folder = data / mme.RELEASE / task
        inner, texts = ("images/", "questions_answers_YN") if task in WITH_SUBFOLDERS else ("", "")
        (folder / inner).mkdir(parents=True)
        (folder / texts).mkdir(exist_ok=True)
        for number in range(images):
            name, lines = f"{task}/{inner}{number}.v2.jpg", ""
            for question, answer in (("Is it so?", "Yes"), ("Is it not?", "No")):
                blanks = " " if number % 2 else "  "
                lines += f"{question}{blanks}Please answer yes or no.\t{answer}\n"
                answers.append({"question_id": name, "prompt": question + SUFFIX, "text": answer})
            (folder / texts / f"{number}.txt").write_text(lines)
    return answers


@pytest.fixture
def points(tmp_path, files):
    """Score answers to a release in ``tmp_path``."""

    def run(answers):
        return mme.score(tmp_path, files.lines(tmp_path / "answers.jsonl", answers))

    return run


def of(answers, task):
    """The answers to one task, in their order."""
    return [answer for answer in answers if answer["question_id"].startswith(f"{task}/")]


def remarks_of(score, question_id):
    return [remark for remark in score.remarks if remark.question_id.startswith(question_id)]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        *[(text, "yes") for text in ("Yes", "YES!", "Yes, there is", " yes", "Eyes", "yes\tno")],
        *[(text, "no") for text in ("No", "NO.", "Know", "Snow", "None", "Not", "  no", "\u3000No")],
        *[(text, "other") for text in ("", "A yes", "I know", "Sure", "ＹＥＳ", "   no", "да", "İyes")],
    ],
)
def test_only_the_first_four_characters_are_read(reply, expected):
    assert says(reply) == expected


def test_keys_are_those_of_the_converter():
    truths = {("color", "1.txt", "Red? Please answer yes or no."): "Yes"}
    one, two = "Red? Please answer yes or no.", "Blue?  Please answer yes or no."
    assert mme.key_of("color/1.a.png", "Red?" + SUFFIX, truths) == ("color", "1.txt", one)
    assert mme.key_of("color/images/1.png", "Red?", truths) == ("color", "1.txt", one)
    assert mme.key_of("color/1.png", one, truths) == ("color", "1.txt", one)
    assert mme.key_of("color/1.png", "Blue?" + SUFFIX, truths) == ("color", "1.txt", two)
    # Only a prompt with the suffix is stripped.
    assert mme.key_of("color/1.png", " Red?", truths)[2] == " Red?  Please answer yes or no."
    for question_id, prompt in ((1, "Red?"), ("color/1.png", None)):
        assert mme.key_of(question_id, prompt, truths) not in truths


def test_perfect_answers_and_the_report(tmp_path, points):
    score = points(write_release(tmp_path))
    assert (score.value, score.parts["perception"], score.parts["cognition"]) == (2000.0, 2000.0, 800.0)
    assert score.parts["total"] == 2800.0 and score.remarks == []
    assert [score.parts[f"OCR.{name}"] for name in ("score", "acc", "acc+")] == [200.0, 100.0, 100.0]
    assert len(score.questions) == 56 and {question.score for question in score.questions} == {1.0}
    lines = score.report.split("\n")
    assert lines[:4] == [
        "=========== Perception ===========",
        "total score: 2000.0 ",
        "",
        "\t existence  score: 200.0",
    ]
    assert lines[12:18] == [
        "\t OCR  score: 200.0",
        "",
        "",
        "=========== Cognition ===========",
        "total score: 800.0 ",
        "",
    ]
    assert lines[18] == "\t commonsense_reasoning  score: 200.0" and len(lines) == 24


def test_points_to_the_last_digit(tmp_path, points):
    answers = write_release(tmp_path, images=3)
    count = of(answers, "count")
    count[1]["text"] = "Yes"
    count[2]["text"] = "maybe"
    score = points(answers)
    assert score.parts["count.score"] == 4 / 6 * 100 + 1 / 3 * 100
    assert (score.parts["count.acc"], score.parts["count.acc+"]) == (4 / 6 * 100, 1 / 3 * 100)
    assert score.value == 9 * 200 + (4 / 6 * 100 + 1 / 3 * 100)
    assert sum(question.score for question in score.questions) == 82


def test_order_decides_the_pairs(tmp_path, points):
    answers = write_release(tmp_path)
    existence, rest = answers[:4], answers[4:]
    existence[0]["text"], existence[2]["text"] = "no", "no"
    # In order each image has one right answer; swapped, one pair is all wrong and one all right.
    assert points(answers).parts["existence.score"] == 50.0
    moved = points([existence[0], existence[2], existence[1], existence[3], *rest])
    assert moved.parts["existence.score"] == 50.0 + 50.0
    assert len(moved.remarks) == 4 and moved.skipped == 0
    assert "paired by its place with a question about existence/1.v2.jpg" in moved.remarks[0].what
    assert [question.score for question in moved.questions[:4]] == [0.0, 0.0, 1.0, 1.0]


def test_missing_pair_is_left_out_as_officially(tmp_path, points):
    answers = write_release(tmp_path)
    answers[0]["text"] = "No"
    score = points([answers[0], answers[3], *answers[4:]])
    assert score.parts["existence.score"] == 50.0 and len(score.questions) == 54
    assert score.skipped == 2 and len(remarks_of(score, "existence/")) == 4
    assert "no answer to 'Is it not?  Please" in remarks_of(score, "existence/0.v2.jpg")[1].what


def test_one_missing_answer_is_wrong(tmp_path, points):
    answers = write_release(tmp_path)
    score = points(answers[:1] + answers[2:])
    # The official script stops over three lines; by image, one image is right, and three of four questions are.
    assert score.parts["existence.score"] == 75.0 + 50.0 and score.skipped == 0
    assert "3 lines do not make pairs" in remarks_of(score, "existence")[0].what
    assert "counted as wrong" in remarks_of(score, "existence/0.v2.jpg")[0].what
    assert [question.score for question in score.questions].count(0.0) == 1
    assert score.questions[-1].question_id == "existence/0.v2.jpg" and len(score.questions) == 56


def test_repeated_answers(tmp_path, points):
    answers = write_release(tmp_path)
    twice = {**answers[0], "text": "No"}
    score = points([answers[0], twice, answers[1], answers[1], *answers[2:]])
    # Three images of two lines each, as the official script sees it: one half right, two right.
    assert score.parts["existence.score"] == 5 / 6 * 100 + 2 / 3 * 100
    assert [remark.what[:9] for remark in score.remarks] == ["2 answers", "2 answers"]
    odd = points([*answers, twice])
    assert odd.parts["existence.score"] == 75.0 + 50.0  # the last one counts
    assert [remark.skipped for remark in remarks_of(odd, "existence/")] == [True]


def test_tabs_and_line_breaks_as_in_internvl(tmp_path, points):
    answers = write_release(tmp_path)
    answers[0]["text"] = "Yes\tindeed"
    score = points(answers)
    assert score.parts["existence.score"] == 100.0 + 50.0 and score.skipped == 1
    assert len(score.questions) == 55 and "tab or line break" in score.remarks[0].what

    answers[0]["text"], answers[2]["text"] = "Yes\n", "Yes\rno"
    score = points(answers)  # lines: yes, empty | no, yes | empty, no: only the middle pair is complete
    assert score.parts["existence.score"] == 100.0 + 1 / 3 * 100 and score.skipped == 0
    assert "tab or line break" in remarks_of(score, "existence/0.v2.jpg")[0].what

    answers[2]["text"] = "Yes\r"  # which is read as the end of its own line
    score = points(answers)  # five lines: by image, and the reply is read as a whole
    assert score.parts["existence.score"] == 200.0 and "read as a whole" in score.remarks[1].what

    answers[0]["text"] = "Yes\na\tb\tc\td"
    answers[2]["text"] = "Yes\n"
    assert "'c' stands where Yes or No is expected" in points(answers).remarks[0].what


def test_answers_without_ground_truth_are_skipped(tmp_path, points):
    answers = write_release(tmp_path)
    strangers = [
        {"question_id": "existence/0.v2.jpg", "prompt": "Really?" + SUFFIX, "text": "Yes"},
        {"question_id": "weather/0.jpg", "prompt": "Is it so?" + SUFFIX, "text": "Yes"},
        {"question_id": 7, "prompt": "Is it so?", "text": "Yes"},
    ]
    score = points([*strangers, *answers])
    assert score.value == 2000.0 and score.skipped == 3 and len(score.questions) == 56
    assert [remark.question_id for remark in score.remarks] == ["existence/0.v2.jpg", "weather/0.jpg", 7]


def test_null_is_an_empty_reply(tmp_path, points):
    answers = write_release(tmp_path)
    answers[0]["text"] = None
    score = points(answers)
    assert score.parts["existence.score"] == 75.0 + 50.0
    assert "null" in score.remarks[0].what and score.skipped == 0


def test_nothing_but_other_replies(tmp_path, points):
    answers = write_release(tmp_path)
    for answer in of(answers, "OCR"):
        answer["text"] = "Maybe"
    score = points(answers)
    assert score.parts["OCR.score"] == 0.0 and score.value == 1800.0
    assert len(score.remarks) == 4 and "neither yes nor no" in score.remarks[0].what


def test_tasks_without_answers_or_texts(tmp_path, points):
    answers = write_release(tmp_path, tasks=mme.TASKS[:-1])
    score = points([answer for answer in answers if not answer["question_id"].startswith("OCR/")])
    assert score.value == 1800.0 and score.parts["OCR.score"] == 0.0
    assert "there is no answer" in remarks_of(score, "OCR")[0].what and len(remarks_of(score, "OCR/")) == 4
    assert score.parts["cognition"] == 600.0 and "code_reasoning.score" not in score.parts
    assert "code_reasoning" not in score.report and remarks_of(score, "code_reasoning")[0].skipped


def test_refused_files(tmp_path, points):
    with pytest.raises(FileNotFoundError, match="holds no text of any task"):
        mme.read_ground_truth(tmp_path)
    answers = write_release(tmp_path)
    with pytest.raises(ValueError, match="another split"):
        points([{**answer, "prompt": "What?"} for answer in answers])
    with pytest.raises(ValueError, match=r"answers.jsonl, line 1 lacks prompt"):
        points([{"question_id": "x", "text": "Yes"}])
    text = tmp_path / mme.RELEASE / "scene/questions_answers_YN/1.txt"
    text.write_text("Is it so? Please answer yes or no.\tYes\n\nIs it not?\tmaybe\n")
    with pytest.raises(ValueError, match=r"1\.txt, line 3 is not a question, a tab, and Yes or No"):
        points(answers)
    text.write_bytes(b"caf\xe9\tYes")
    with pytest.raises(ValueError, match="not UTF-8"):
        points(answers)
    text.parent.rename(text.parent.with_name("texts"))
    with pytest.raises(FileNotFoundError, match="questions_answers_YN is missing"):
        points(answers)


def read_again(folder):
    """Task scores from task files: a plain reading of the rules, line after line."""
    scores = {}
    for task in mme.TASKS:
        lines, right, full = (folder / f"{task}.txt").read_text().splitlines(keepends=True), 0, 0
        for first in range(0, len(lines), 2):
            hits = 0
            for line in lines[first : first + 2]:
                _, _, truth, reply = line.split("\t")
                head = reply.lower()[:4]
                told = "yes" if "yes" in head else "no" if "no" in head else "other"
                hits += told == truth.lower()
            right, full = right + hits, full + (hits == 2)
        scores[task] = right / len(lines) * 100 + full / (len(lines) / 2) * 100
    return scores


def test_converter_and_calculation_agree_with_the_score(tmp_path, points, monkeypatch, capsys):
    answers = write_release(tmp_path, images=7)
    rng = random.Random(0)
    replies = (
        "Yes",
        "no",
        "YES!!",
        "Know",
        "I know",
        "",
        "A yes",
        "No. " * 200,
        "Ja",
        "Yes, there is",
        "naïve",
    )
    for answer in answers:
        answer["text"] = rng.choice(replies)
    rng.shuffle(answers)
    score = points(answers)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers.jsonl").rename(tmp_path / "answers/some.jsonl")
    monkeypatch.chdir(tmp_path)  # where LLaVA's mme.sh calls it
    script("convert_answer_to_mme").main(["--experiment", "some"])
    results = tmp_path / "eval_tool/answers/some"
    scores = read_again(results)
    assert {task: score.parts[f"{task}.score"] for task in mme.TASKS} == scores
    total = 0
    for task in mme.GROUPS["Perception"]:
        total += scores[task]
    assert score.value == total
    capsys.readouterr()
    script("mme_calculation").main(["--results_dir", str(results)])
    assert capsys.readouterr().out == score.report + "\n"


def test_converter_leaves_no_file_of_an_earlier_run_and_names_strangers(tmp_path, files, capsys):
    answers = write_release(tmp_path)
    answers[0]["text"] = "half a pair: \ud83d"
    results = tmp_path / "results"
    results.mkdir()
    (results / "OCR.txt").write_text("older")
    rows = [*of(answers, "existence"), {"question_id": "x/y.jpg", "prompt": "Hm?", "text": "No"}]
    source = files.lines(tmp_path / "some.jsonl", rows)
    flags = ["--data-dir", str(tmp_path), "--answers-file", str(source), "--results_dir", str(results)]
    script("convert_answer_to_mme").main(flags)
    assert [path.name for path in results.iterdir()] == ["existence.txt"]
    first, second = (results / "existence.txt").read_text().splitlines()[:2]
    assert first == "0.txt\tIs it so?  Please answer yes or no.\tYes\thalf a pair: ?"
    assert second == "0.txt\tIs it not?  Please answer yes or no.\tNo\tNo"
    assert "x/y.jpg: no ground truth for 'Hm?'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="count.txt is missing"):
        script("mme_calculation").main(["--results_dir", str(results)])
    (results / "existence.txt").write_text(first + "\n")
    with pytest.raises(SystemExit, match="existence.txt: 1 lines do not make pairs"):
        script("mme_calculation").main(["--results_dir", str(results)])
    files.lines(source, [{"question_id": "x/y.jpg", "prompt": "Hm?", "text": "No"}])
    with pytest.raises(SystemExit, match="another split"):
        script("convert_answer_to_mme").main(flags)
    with pytest.raises(SystemExit):
        script("convert_answer_to_mme").main([])


def test_lines_without_four_columns_alone():
    with pytest.raises(ValueError, match="no line has four columns"):
        score_lines(["\n", "a\tb\n"])


def test_questions_and_texts_must_be_about_the_same(tmp_path, files):
    rows = [
        {"question_id": answer["question_id"], "text": answer["prompt"]} for answer in write_release(tmp_path)
    ]
    files.lines(tmp_path / mme.QUESTIONS, rows)
    mme.check_questions(tmp_path)
    files.lines(tmp_path / mme.QUESTIONS, rows[1:])
    with pytest.raises(
        ValueError, match=r"lacks 1 of the 56 questions .* 'Is it so\?  Please .* of existence"
    ):
        mme.check_questions(tmp_path)
    files.lines(tmp_path / mme.QUESTIONS, [rows[0], {**rows[1], "text": "Is it?"}])
    with pytest.raises(
        ValueError, match=r"llava_mme.jsonl, line 2: no text .*existence/.../0.txt. with 'Is it\?"
    ):
        mme.check_questions(tmp_path)

"""TextVQA: joining answers with annotations, what untidy answers give, and what is refused."""

import pytest

from dyvte.benchmarks import textvqa
from dyvte.benchmarks.__main__ import main as benchmarks_main
from llava.eval import eval_textvqa

SUFFIX = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    "prompt",
    [
        f"What Brand?\nReference OCR token: A, B\n{SUFFIX}",
        f"What brand?\nReference OCR token: \n{SUFFIX}",
        f"Reference OCR token: A\nWhat brand?\n{SUFFIX}",
        f"What brand?\n{SUFFIX}",
        "OCR tokens: a, b. Question: What brand? Short answer:",
        "OCR tokens: a\nb\nc. Question: What brand? Short answer: Short answer:",
    ],
)
def test_question_within_a_prompt(prompt):
    assert textvqa.question_of(prompt) == "what brand?"


@pytest.mark.parametrize(
    "prompt", ["What brand?", "a\nb\nc", "a\nb\nc\nReference OCR token: x", "OCR tokens: x"]
)
def test_prompt_of_no_known_shape(prompt):
    with pytest.raises(ValueError, match="No TextVQA question"):
        textvqa.question_of(prompt)


@pytest.fixture
def folder(tmp_path, files):
    def row(image, question, answers):
        return {"image_id": image, "question": question, "answers": answers}

    rows = [
        row("i1", "what brand?", ["replaced"] * 10),
        row("i1", "What brand?", ["Coca-Cola"] * 2 + ["pepsi"] * 8),
        row("i1", "how many?", ["two"] * 10),
    ]
    files.json(tmp_path / textvqa.ANNOTATIONS, {"data": rows})
    return tmp_path


def answer(question, text, image="i1"):
    return {"question_id": image, "prompt": f"{question}\n{SUFFIX}", "text": text}


def test_score(folder, files):
    file = files.lines(folder / "a.jsonl", [answer("What brand?", "coca cola."), answer("How many?", "2")])
    score = textvqa.score(folder, file)
    assert [question.score for question in score.questions] == [pytest.approx(0.6), 1.0]
    assert score.value == pytest.approx(80.0)


def test_untidy_answers_keep_the_official_number(folder, files):
    rows = [
        answer("How many?", "Two."),
        answer("What brand?", "x", image="i2"),
        answer("How many?", None),
        {**answer("How many?", "2"), "prompt": "How many?"},
        {**answer("How many?", "2"), "prompt": None},
        answer("HOW many?", "the two"),
        {**answer("How many?", "2"), "question_id": 5},
    ]
    score = textvqa.score(folder, files.lines(folder / "a.jsonl", rows))
    assert score.value == 100 * ((1.0 + 0.0 + 1.0) / 3) and score.parts == {"accuracy": score.value}
    assert score.report == "a\nSamples: 3\nAccuracy: 66.67%\n"
    assert [(r.question_id, r.what, r.skipped) for r in score.remarks] == [
        ("i1", "text is null, not a string: taken as an empty answer", False),
        ("i2", "no annotation for 'what brand?': left out", True),
        ("i1", "another answer to 'how many?': each of them counts", False),
        ("i1", "no question in its prompt: left out", True),
        ("i1", "no question in its prompt: left out", True),
        ("i1", "another answer to 'how many?': each of them counts", False),
        (5, "no annotation for 'how many?': left out", True),
        ("i1", "no answer to 'what brand?': left out of the mean", True),
    ]
    assert score.skipped == 5


def test_other_split_is_an_error(folder, files):
    file = files.lines(folder / "a.jsonl", [answer("What brand?", "x", image="i2")])
    with pytest.raises(ValueError, match=r"a\.jsonl.*TextVQA_0\.5\.1_val\.json"):
        textvqa.score(folder, file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is a list, not an object; take TextVQA's own file"),
        ({"data": [{"image_id": "i1"}]}, "data\\[0\\] lacks question"),
        ({"data": [{"image_id": "i1", "question": "a?"}]}, "lacks answers; .* a split with ground truth"),
        ({"data": [{"image_id": "i1", "question": "a?", "answers": ["x"] * 9}]}, "does not have 10 answers"),
    ],
)
def test_broken_annotations(folder, files, content, message):
    file = files.lines(folder / "a.jsonl", [answer("How many?", "2")])
    files.json(folder / textvqa.ANNOTATIONS, content)
    with pytest.raises(ValueError, match=f"TextVQA_0.5.1_val.json.*{message}"):
        textvqa.score(folder, file)


def test_check_before_inference(folder, files):
    rows = [{"question_id": "i1", "text": f"How many?\n{SUFFIX}"}]
    files.lines(folder / textvqa.QUESTION_FILE, rows)
    textvqa.check_questions(folder)
    for change, message in (
        ({"question_id": "i9"}, "no annotation for 'how many\\?' on image 'i9'"),
        ({"text": "How many?"}, "No TextVQA question"),
    ):
        files.lines(folder / textvqa.QUESTION_FILE, [*rows, {**rows[0], **change}])
        with pytest.raises(ValueError, match=f"llava_textvqa_val_v051_ocr.jsonl, line 2: {message}"):
            textvqa.check_questions(folder)


def test_llava_command_line_scores_the_lines_there_are(folder, files, capsys):
    files.lines(folder / "results/run.jsonl", [answer("How many?", "Two.")])
    (folder / "results/notes.txt").write_text("x")
    eval_textvqa.main(
        ["--annotation-file", str(folder / textvqa.ANNOTATIONS), "--result-dir", str(folder / "results")]
    )
    assert capsys.readouterr().out == "Skipping notes.txt\nrun\nSamples: 1\nAccuracy: 100.00%\n\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no answers"),
        ('{"question_id": "i1", "prompt": "a", "te', "line 1 is not valid JSON"),
        ('{"question_id": "i1", "prompt": "a"}', "line 1 lacks text"),
        ('{"prompt": "a", "text": "b"}', "line 1 lacks question_id"),
        (
            '{"question_id": null, "prompt": "a", "text": "b"}',
            "line 1: question_id is null, not a number or a string",
        ),
        ('{"question_id": "i1", "prompt": "a", "text": "\udcff"}', "is not UTF-8"),
        ("[1]", "line 1 is a list, not an object"),
    ],
)
def test_broken_answers_name_the_file(folder, capsys, content, message):
    file = folder / "broken.jsonl"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit) as error:
        benchmarks_main(["score", "textvqa", "--data-dir", str(folder), "--answers", str(file)])
    assert message in str(error.value) and "broken.jsonl" in str(error.value)


def test_missing_answers_file(folder):
    with pytest.raises(SystemExit, match="does not exist"):
        benchmarks_main(["score", "textvqa", "--data-dir", str(folder), "--answers", "nowhere.jsonl"])

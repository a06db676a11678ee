"""TextVQA: joining answers with annotations, and what is refused."""

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


def test_incomplete_or_double_answers_are_refused(folder, files):
    one = answer("What brand?", "x")
    for rows in ([one], [one, one], [one, answer("How many?", "2"), one]):
        with pytest.raises(ValueError, match="TextVQA_0.5.1_val.json has 2"):
            textvqa.score(folder, files.lines(folder / "a.jsonl", rows))


def test_stranger_is_refused(folder, files):
    file = files.lines(folder / "a.jsonl", [answer("What brand?", "x", image="i2"), answer("How many?", "2")])
    with pytest.raises(ValueError, match="TextVQA_0.5.1_val.json has 2"):
        textvqa.score(folder, file)
    with pytest.raises(ValueError, match="on image i2"):
        eval_textvqa.eval_single(folder / textvqa.ANNOTATIONS, file)


def test_llava_command_line_scores_the_lines_there_are(folder, files, capsys):
    files.lines(folder / "results/run.jsonl", [answer("How many?", "Two.")])
    eval_textvqa.main(
        ["--annotation-file", str(folder / textvqa.ANNOTATIONS), "--result-dir", str(folder / "results")]
    )
    assert capsys.readouterr().out == "run\nSamples: 1\nAccuracy: 100.00%\n\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no answers"),
        ('{"question_id": "i1", "prompt": "a", "te', "line 1 is not valid JSON"),
        ('{"question_id": "i1", "prompt": "a"}', "line 1 lacks text"),
        ('{"question_id": "i1", "prompt": "a", "text": null}', "is not a string"),
        ("[1]", "not a JSON object"),
    ],
)
def test_broken_answers_name_the_file(folder, capsys, content, message):
    file = folder / "broken.jsonl"
    file.write_text(content)
    with pytest.raises(SystemExit) as error:
        benchmarks_main(["score", "textvqa", "--data-dir", str(folder), "--answers", str(file)])
    assert message in str(error.value) and "broken.jsonl" in str(error.value)


def test_missing_answers_file(folder):
    with pytest.raises(SystemExit, match="does not exist"):
        benchmarks_main(["score", "textvqa", "--data-dir", str(folder), "--answers", "nowhere.jsonl"])

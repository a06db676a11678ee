"""VQAv2: the official evaluators' figures on hand-made questions."""

import json

import pytest

from dyvte.benchmarks import vqav2
from dyvte.benchmarks.__main__ import main as benchmarks_main
from dyvte.benchmarks.benchmark import Remark


def humans(*texts):
    """Ten answers: the texts in turn, each with a number of its own."""
    assert len(texts) == 10
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": place}
        for place, text in enumerate(texts, 1)
    ]


def annotation(name, answers, question_type="what is the", answer_type="other"):
    return {
        "question_id": name,
        "image_id": 1,
        "question_type": question_type,
        "answer_type": answer_type,
        "multiple_choice_answer": answers[0]["answer"],
        "answers": answers,
    }


@pytest.mark.parametrize(
    ("prediction", "said", "expected"),
    [  # expected: of the variants 2021, 2015, always
        ("Dog", ["dog"] * 10, (0, 1, 1)),  # all agree: since 2021 nothing is normalised
        ("dog", ["Dog"] * 10, (0, 0, 1)),
        (" dog\n", ["dog"] * 10, (1, 1, 1)),
        ("dog", ["dog "] * 9 + ["dog"], (1, 0.3, 1)),  # before 2021 blanks of the humans stay
        ("dog", ["the dog"] * 9 + ["cat"], (1, 0, 1)),
        ("2", ["2"] * 2 + ["two"] * 8, (1, 0.6, 1)),
        ("1 000 2", ["1,,000-2"] * 9 + ["x"], (1, 0, 0)),  # two commas between digits
        ("10002", ["1,000-2"] * 9 + ["x"], (1, 1, 1)),
        ("men's", ["men's"] * 9 + ["x"], (1, 1, 1)),
        ("red,white", ["red white"] * 9 + ["x"], (1, 1, 1)),
        ("", ["the"] * 9 + ["x"], (1, 0, 1)),
        ("\u201cdog\u201d", ["dog"] * 9 + ["x"], (0, 0, 0)),
    ],
)
def test_variants(prediction, said, expected):
    found = [vqav2.accuracy_of(prediction, humans(*said), name) for name in ("2021", "2015", "always")]
    assert found == [pytest.approx(value, abs=1e-12) for value in expected]


@pytest.mark.parametrize("places", [(0, 1), (0, 9), (4, 5), (8, 9), (0, 4, 9), (1, 2, 3)])
def test_rounding_follows_the_order_of_the_humans(places):
    said = ["cat" if place in places else "dog" for place in range(10)]
    credits = [min(1, (len(places) - (place in places)) / 3) for place in range(10)]
    assert vqav2.accuracy_of("cat", humans(*said), "2021") == sum(credits) / 10


def test_equal_records_do_not_support_each_other():
    answers = [{"answer": "dog"}] * 9 + [{"answer": "cat"}]
    assert vqav2.accuracy_of("dog", answers, "2021") == 0.1  # only the odd one finds others


@pytest.fixture
def folder(tmp_path, files):
    records = [
        annotation(1, humans(*["dog"] * 10)),
        annotation(2, humans(*["two"] * 2, *["3"] * 8), "how many", "number"),
        annotation(3, humans(*["no"] * 3, *["yes"] * 7), "is the", "yes/no"),
        annotation(4, humans(*["the"] * 3, *["x"] * 7), "is the", "yes/no"),
    ]
    files.json(tmp_path / vqav2.ANNOTATIONS, {"annotations": records})
    return tmp_path


def line(name, text):
    return {"question_id": name, "text": text}


def test_figures_remarks_and_report(folder, files):
    rows = [
        line(3, "NO"),
        line(1, "wrong at first"),
        line(2, "Two."),
        line("2", "3"),
        line(1, "Dog."),
        line(77, "dog"),
    ]
    score = vqav2.score(folder, files.lines(folder / "a.jsonl", rows))
    two = sum([1 / 3] * 2 + [2 / 3] * 8) / 10
    three = sum([2 / 3] * 3 + [1] * 7) / 10
    assert [(question.question_id, question.score) for question in score.questions] == [
        (1, 1.0),
        (2, two),
        (3, three),
        (4, three),  # no answer: uploaded as an empty one, which "the" is as well
    ]
    assert score.parts == {
        "overall": 100 * (1.0 + two + three + three) / 4,
        "question_type.what is the": 100.0,
        "question_type.how many": 100 * two,
        "question_type.is the": 100 * (three + three) / 2,
        "answer_type.other": 100.0,
        "answer_type.number": 100 * two,
        "answer_type.yes/no": 100 * (three + three) / 2,
    }
    assert (score.value, score.variant) == (score.parts["overall"], "2021")
    assert sorted(score.remarks, key=lambda remark: str(remark.question_id)) == [
        Remark(1, "answered again: only the last answer counts", True),
        Remark("2", "no such question (a string; ids are numbers): left out", True),
        Remark(4, "no answer: scored as an empty one", False),
        Remark(77, "no such question: left out", True),
    ]
    assert score.report.splitlines() == [
        "Overall Accuracy is: 85.00",
        "",
        "Per Question Type Accuracy is the following:",
        "what is the : 100.00",
        "how many : 60.00",
        "is the : 90.00",
        "",
        "",
        "Per Answer Type Accuracy is the following:",
        "other : 100.00",
        "number : 60.00",
        "yes/no : 90.00",
    ]


def test_answers_are_scored_as_uploaded_and_results_as_they_are(folder, files):
    files.json(folder / vqav2.ANNOTATIONS, {"annotations": [annotation(1, humans(*["men's"] * 10))]})
    answers = files.lines(folder / "a.jsonl", [line(1, "men's")])
    results = files.json(folder / "results.json", [{"question_id": 1, "answer": "men's"}])
    assert vqav2.score(folder, answers).value == 0.0  # uploaded as "men 's"
    score = vqav2.score(folder, results)
    assert score.value == 100.0 and "taken as they are" in score.report


def test_results_file_with_gaps(folder, files):
    rows = [{"question_id": 1, "answer": "dog"}, {"question_id": 3, "answer": None}]
    score = vqav2.score(folder, files.json(folder / "results.json", rows))
    assert [question.score for question in score.questions] == [1.0, 0.0, 0.0, 0.0]
    assert [remark.question_id for remark in score.remarks] == [3, 2, 4]


def test_text_that_is_no_string_is_an_empty_answer(folder, files):
    score = vqav2.score(folder, files.lines(folder / "a.jsonl", [line(4, None), line(1, ["dog"])]))
    assert [question.score for question in score.questions] == [0.0, 0.0, 0.0, pytest.approx(0.9)]
    assert [remark.question_id for remark in score.remarks] == [4, 1, 2, 3]


def test_variant_by_command_line(folder, files):
    answers = files.lines(folder / "a.jsonl", [line(name, "two") for name in (1, 2, 3, 4)])
    command = ["score", "vqav2", "--data-dir", str(folder), "--answers", str(answers)]
    for variant, accuracy in (("2021", 0.6), ("2015", 0.0)):  # "two" becomes 2; the humans' stays before 2021
        benchmarks_main([*command, "--variant", variant, "--json", str(folder / "out.json")])
        content = json.loads((folder / "out.json").read_text())
        assert content["variant"] == variant
        assert content["questions"][1] == {"question_id": 2, "score": pytest.approx(accuracy)}
    with pytest.raises(SystemExit, match="no variant '2016'"):
        benchmarks_main([*command, "--variant", "2016"])


def test_no_public_answers(tmp_path, folder, files):
    answers = files.lines(tmp_path / "a.jsonl", [line(500, "dog")])
    with pytest.raises(ValueError, match="No answer in .*a.jsonl.*EvalAI"):
        vqav2.score(folder, answers)
    (folder / vqav2.ANNOTATIONS).unlink()
    with pytest.raises(FileNotFoundError, match="challenge 830"):
        vqav2.score(folder, answers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": 1, "text": "a"}\n{"question_id": 2, "te', "line 2 is not valid JSON"),
        ('{"question_id": 1}', "line 1 lacks text"),
        ('[{"question_id": 1, "answer": "a"}', "results is not valid JSON"),
        ('[{"question_id": 1, "answer": "a"}, {"question_id": 1}]', r"results: \[1\] lacks answer"),
        ('[{"question_id": [1], "answer": "a"}]', r"\[0\].question_id is a list, not a number or a string"),
        ("", "holds no answers"),
    ],
)
def test_broken_answers(folder, content, message):
    (folder / "results").write_text(content)
    with pytest.raises(ValueError, match=message):
        vqav2.score(folder, folder / "results")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is a list, not an object; take it from visualqa.org"),
        ({"annotations": []}, "holds no annotations"),
        ({"annotations": [{"question_id": 1}]}, r"annotations\[0\] lacks question_type"),
        (
            {"annotations": [annotation(1, humans(*"abcdefghij"))] * 2},
            r"annotations\[0\] has a question_id that is used twice",
        ),
        (
            {"annotations": [{**annotation(1, humans(*"abcdefghij")), "answers": []}]},
            r"annotations\[0\] has no answers \(1\)",
        ),
        (
            {"annotations": [annotation(1, [{"answer": None}])]},
            r"annotations\[0\].answers\[0\].answer is null, not a string",
        ),
    ],
)
def test_broken_annotations(tmp_path, files, content, message):
    files.json(tmp_path / vqav2.ANNOTATIONS, content)
    with pytest.raises(ValueError, match=message):
        vqav2.score(tmp_path, files.lines(tmp_path / "a.jsonl", [line(1, "a")]))


def test_check_wants_one_complete_split_whose_files_fit(folder, files):
    with pytest.raises(FileNotFoundError, match=vqav2.VAL_QUESTIONS):
        vqav2.check_questions(folder)
    files.lines(folder / vqav2.VAL_QUESTIONS, [{"question_id": name} for name in (1, 2, 3, 4)])
    vqav2.check_questions(folder)
    files.lines(folder / vqav2.DEV_QUESTIONS, [{"question_id": 7}])
    files.lines(folder / vqav2.TEST_QUESTIONS, [{"question_id": 6}])
    with pytest.raises(ValueError, match="question 7 is not in llava_vqav2_mscoco_test2015"):
        vqav2.check_questions(folder)
    files.lines(folder / vqav2.TEST_QUESTIONS, [{"question_id": 6}, {"question_id": 7}])
    vqav2.check_questions(folder)
    files.lines(folder / vqav2.VAL_QUESTIONS, [{"question_id": "1"}])
    with pytest.raises(ValueError, match="question '1' is not in v2_mscoco"):
        vqav2.check_questions(folder)

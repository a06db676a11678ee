"""SEED-Bench's accuracies on hand-made annotations, its upload file, and the choice of video frames."""

import json
import sys

import pytest

from dyvte.benchmarks import seed
from tests.fixtures.scripts import script

TYPES = {"Scene Understanding": 1, "Text Understanding": 9, "Action Recognition": 10}


def annotation(question_id, question_type, answer="A"):
    data_type = "video" if question_type >= 10 else "image"
    return {
        "question_id": question_id,
        "question_type_id": question_type,
        "data_type": data_type,
        "answer": answer,
    }


FOUR = [annotation("11", 1), annotation("12", 1, "B"), annotation("13", 9, "C"), annotation("v1", 10, "D")]
RIGHT = [(11, "A"), (12, "B"), (13, "C"), ("v1", "D")]


@pytest.fixture
def accuracy(tmp_path, files):
    """Score (question id, text) pairs against annotations."""

    def run(pairs, annotations=FOUR):
        files.json(tmp_path / seed.ANNOTATIONS, {"question_type": TYPES, "questions": annotations})
        rows = [{"question_id": question_id, "text": text} for question_id, text in pairs]
        return seed.score(tmp_path, files.lines(tmp_path / "answers.jsonl", rows))

    return run


def test_accuracies_by_hand(accuracy):
    annotations = [*FOUR, annotation("14", 9, "D"), annotation("v2", 10, "A"), annotation("v3", 10, "A")]
    score = accuracy([*RIGHT, (14, "B"), ("v2", "C"), ("v3", "D")], annotations)
    assert score.value == score.parts["total"] == 4 / 7 * 100
    assert (score.parts["image"], score.parts["video"]) == (3 / 4 * 100, 1 / 3 * 100)
    assert [score.parts[name] for name in TYPES] == [100.0, 50.0, 1 / 3 * 100]
    assert score.report.split("\n") == [
        "Scene Understanding: 100.00%",
        "Text Understanding: 50.00%",
        "Action Recognition: 33.33%",
        "Total accuracy: 57.14%",
        "image accuracy: 75.00%",
        "video accuracy: 33.33%",
    ]
    assert score.remarks == [] and score.skipped == 0


@pytest.mark.parametrize(
    "text", ["a", "A.", " A", "A ", "A\n", "", "А", "Ａ", "(A)", "A. cat", "AB", "E", "A" * 9999]
)
def test_only_the_very_letter_is_right(accuracy, text):
    score = accuracy([(11, text), *RIGHT[1:]])
    assert score.value == 75.0 and score.parts["Scene Understanding"] == 50.0 and score.remarks == []


def test_missing_repeated_and_unknown(accuracy):
    score = accuracy([("v1", "A"), (12, "B"), (99, "A"), ("v1", "D"), ("13", "C"), ("v9", "A")])
    assert score.value == 50.0
    assert [(question.question_id, question.score) for question in score.questions] == [
        ("v1", 1.0),
        (12, 1.0),
        (11, 0.0),
        (13, 0.0),
    ]
    told = {(remark.question_id, remark.skipped): remark.what for remark in score.remarks}
    assert set(told) == {("v1", True), (99, True), ("13", True), ("v9", True), (11, False), (13, False)}
    assert "only the last answer counts" in told["v1", True] and "counted as wrong" in told[13, False]
    assert "ids are numbers" in told["13", True] and "number" not in told[99, True]


def test_order_does_not_matter_but_is_kept(accuracy):
    score = accuracy([*reversed(RIGHT)])
    assert score.value == 100.0 and [one.question_id for one in score.questions] == ["v1", 13, 12, 11]


def test_an_annotation_given_twice_counts_twice(accuracy):
    score = accuracy(RIGHT, [*FOUR, annotation("11", 1, "C")])
    assert score.value == 80.0 and score.parts["Scene Understanding"] == 2 / 3 * 100
    assert [one.score for one in score.questions] == [1.0, 0.0, 1.0, 1.0, 1.0] and score.remarks == []


def test_a_type_with_all_answers_wrong(accuracy):
    score = accuracy([(11, "B"), (12, "A"), *RIGHT[2:]])
    assert score.parts["Scene Understanding"] == 0.0 and score.value == 50.0
    assert [remark.question_id for remark in score.remarks] == [11, 12]
    assert "LLaVA's script stops" in score.remarks[0].what and score.skipped == 0
    # With one of them missing it does not stop.
    assert [remark.what for remark in accuracy([(12, "A"), *RIGHT[2:]]).remarks] == [
        "no answer: counted as wrong"
    ]


def test_null_is_a_wrong_answer(accuracy):
    score = accuracy([(11, None), *RIGHT[1:]])
    assert score.value == 75.0 and "null" in score.remarks[0].what


def test_images_alone(accuracy):
    score = accuracy(RIGHT[:3], FOUR[:3])
    assert score.value == 100.0 and "video" not in score.parts and "video" not in score.report
    assert [remark.question_id for remark in score.remarks] == ["video"]


def test_refused_files(accuracy, tmp_path, files):
    with pytest.raises(ValueError, match="another split"):
        accuracy([("11", "A"), (99, "B")])
    with pytest.raises(ValueError, match=r"SEED-Bench.json: questions\[1\] lacks answer; download"):
        accuracy(RIGHT, [FOUR[0], {"question_id": "1", "question_type_id": 1, "data_type": "image"}])
    with pytest.raises(ValueError, match="question 'v7' is of type 12, which has no name"):
        accuracy(RIGHT, [*FOUR, annotation("v7", 12)])
    with pytest.raises(ValueError, match="holds no questions"):
        accuracy(RIGHT, [])
    types, row = {"question_type": TYPES}, FOUR[0]
    for broken, what in (
        ([], "is a list, not an object"),
        ({"questions": []}, "lacks question_type"),
        ({"question_type": [], "questions": []}, ": question_type is a list, not an object"),
        (
            {"question_type": {"x": [1]}, "questions": []},
            r": question_type\['x'\] is a list, not a whole number",
        ),
        ({**types, "questions": 7}, ": questions is a whole number, not a list"),
        ({**types, "questions": [row, 7]}, r": questions\[1\] is a whole number, not an object"),
        ({**types, "questions": [{**row, "question_id": {}}]}, r": questions\[0\].question_id is an object"),
        ({**types, "questions": [{**row, "question_type_id": "1"}]}, r"\[0\].question_type_id is a string"),
        ({**types, "questions": [{**row, "data_type": []}]}, r"\[0\].data_type is a list, not a string"),
        ({**types, "questions": [{**row, "answer": None}]}, r"\[0\].answer is null, not a string"),
    ):
        with pytest.raises(ValueError, match=f"broken.json{'' if what[0] == ':' else '.*'}{what}"):
            seed.read_seed(files.json(tmp_path / "broken.json", broken))


def test_questions_and_annotations_are_of_one_revision(tmp_path, files):
    files.json(tmp_path / seed.ANNOTATIONS, {"question_type": TYPES, "questions": [*FOUR, FOUR[0]]})
    rows = [{"question_id": question_id, "text": "?"} for question_id, _ in [*RIGHT, RIGHT[0]]]
    files.lines(tmp_path / seed.QUESTIONS, rows)
    seed.check_questions(tmp_path)
    files.lines(tmp_path / seed.QUESTIONS, rows[:-1])
    with pytest.raises(
        ValueError, match="does not ask question 11.* has 5 questions, 1 of them on videos, and .* 4"
    ):
        seed.check_questions(tmp_path)
    for stranger in ("11", "v5", 14):
        files.lines(tmp_path / seed.QUESTIONS, [*rows, {"question_id": stranger, "text": "?"}])
        with pytest.raises(
            ValueError, match=rf"line 6: question {stranger!r} has no annotation.*19,242 questions"
        ):
            seed.check_questions(tmp_path)


def read_upload(path):
    """Strict: nothing but the two keys, both strings; as pairs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(list(row) == ["question_id", "prediction"] for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())
    return [(row["question_id"], row["prediction"]) for row in rows]


def test_upload_file_and_printed_lines(tmp_path, files, capsys):
    annotations = files.json(tmp_path / "SEED-Bench.json", {"question_type": TYPES, "questions": FOUR})
    rows = [{"question_id": question_id, "text": text} for question_id, text in reversed(RIGHT)]
    answers = files.lines(tmp_path / "merge.jsonl", rows)
    upload = tmp_path / "answers_upload/some.jsonl"
    flags = [
        "--annotation-file",
        str(annotations),
        "--result-file",
        str(answers),
        "--result-upload-file",
        str(upload),
    ]
    convert = script("convert_seed_for_submission")
    convert.main(flags)
    assert read_upload(upload) == [("11", "A"), ("12", "B"), ("13", "C"), ("v1", "D")]
    printed = capsys.readouterr()
    assert printed.out.endswith("Total accuracy: 100.00%\nimage accuracy: 100.00%\nvideo accuracy: 100.00%\n")
    assert printed.err == ""
    files.lines(answers, [*rows[1:3], {"question_id": 11, "text": None}])
    convert.main(flags)
    assert read_upload(upload) == [("11", ""), ("12", "B"), ("13", "C"), ("v1", "")]
    assert "v1: no answer: counted as wrong" in capsys.readouterr().err
    files.lines(answers, [{"question_id": 5, "text": "A"}])
    with pytest.raises(SystemExit, match="another split"):
        convert.main(flags)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((10, 21, 12.0), 9),  # 20 frames count, 0 to 19
        ((10, 2, 12.0), 0),
        ((11, 100, 10.0, [1.0, 2.5]), 17),  # frames 10 to 24
        ((11, 100, 29.97, [0.5, 1.0]), 21),  # frames 14 to 28
        ((11, 100, 10.0, [-3.0, 99.0]), 49),  # clamped to frames 0 to 98
        ((11, 100, 10.0, [1.0, 1.1]), 10),
        ((12, 30, 15.0, [10, 99]), 19),  # frames 10 to 29
        ((12, 300, 15.0, [10, 20]), 14),
    ],
)
def test_frame_in_the_middle(arguments, expected):
    assert script("extract_seed_video_frames").frame_index(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 1, 12.0), "no frame from 0 to 0"),
        ((11, 100, 10.0, [2.0, 1.0]), "no frame from 20 to 10"),
        ((12, 5, 15.0, [10, 20]), "no frame from 10 to 5"),
        ((11, 100, 10.0), "no segment"),
        ((9, 100, 10.0), "type 9 have no video"),
    ],
)
def test_segments_without_a_frame(arguments, message):
    with pytest.raises(ValueError, match=message):
        script("extract_seed_video_frames").frame_index(*arguments)


def frame_flags(tmp_path, files, questions):
    annotations = files.json(tmp_path / "SEED-Bench.json", {"question_type": {}, "questions": questions})
    flags = ["--annotation-file", annotations, "--video-root", tmp_path, "--output-dir", tmp_path / "frames"]
    return [str(flag) for flag in flags]


def test_frames_need_pyav(tmp_path, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # which makes its import fail
    with pytest.raises(SystemExit, match="pip install 'dyvte.video.'"):
        script("extract_seed_video_frames").main(frame_flags(tmp_path, files, []))


def test_frames_from_real_videos(tmp_path, files, capsys):
    av = pytest.importorskip("av")
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    path = tmp_path / "EPIC-KITCHENS/P01.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(40):
            plain = numpy.full((64, 64, 3), 6 * number, numpy.uint8)
            video.mux(stream.encode(av.VideoFrame.from_ndarray(plain, format="rgb24")))
        video.mux(stream.encode(None))
    question = {**annotation("v7", 11), "data_id": "P01/P01.mp4", "segment": [1.0, 2.5]}
    missing = {**question, "question_id": "v8", "data_id": "P02.mp4"}
    image_question = annotation("5", 1)
    with pytest.raises(SystemExit, match="1 of 2 frames could not be written"):
        script("extract_seed_video_frames").main(
            frame_flags(tmp_path, files, [question, missing, image_question])
        )
    assert "v8: " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["11_v7.png"]
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    written = numpy.asarray(image.open(tmp_path / "frames/11_v7.png"))
    assert [number for number, frame in enumerate(frames) if (frame == written).all()] == [17]

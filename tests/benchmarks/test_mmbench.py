"""MMBench on tables of a few questions: reading, rules for letters, circular figures, questions, upload sheet."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import openpyxl
import pytest
from PIL import Image

from dyvte.benchmarks import get_benchmark, mmbench, mmbench_questions
from dyvte.benchmarks.mmbench_questions import read_items
from dyvte.benchmarks.option_letters import letter_2024, letter_today
from dyvte.engine.questions import check_items, prepare
from llava.eval import model_vqa_mmbench
from tests.fixtures.scripts import script as load_script

ROOT = Path(__file__).parents[2]
COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
COLUMNS += ["source", "l2-category", "comment", "split"]


def png(colour="red", mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (2, 3), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def row(index, options, answer="A", **extra):
    plain = {"index": index, "question": "What?", "answer": answer, "category": "ocr", "image": png()}
    plain |= {"l2-category": "logic_reasoning", "split": "dev"}
    return {**plain, **dict(zip("ABCD", options, strict=False)), **extra}


@pytest.fixture
def data(tmp_path):
    """Write a table; its folder."""

    def write(rows, columns=COLUMNS, name="mmbench_dev_20230712.tsv"):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, columns, restval="", delimiter="\t", extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
        return tmp_path

    return write


@pytest.fixture
def score(data, files):
    """Score (question id, text) pairs on a table."""

    def run(rows, replies, variant=""):
        folder = data(rows)
        lines = [{"question_id": index, "text": text} for index, text in replies]
        return mmbench.score(folder, files.lines(folder / "answers.jsonl", lines), variant)

    return run


PETS = {"A": "cat", "B": "Dog", "C": "red bird"}


@pytest.mark.parametrize(
    ("reply", "in_2024", "today"),
    [
        ("B", "B", "B"),
        ("(B).", "B", "B"),
        ("b", None, None),
        ("", None, None),
        ("A or B", None, None),
        ("“B”", None, None),  # these quotes do not separate words
        ("Z", "Z", "Z"),
        ("E", None, None),
        ("It is the dog", "B", "B"),
        ("DOG!", "B", "B"),
        ("cat, not dog", None, None),
        ("B, I think so", "B", "B"),  # fourth word from the end
        ("B, I do think so", "B", None),  # fifth
        ("A dog", "A", "A"),
        ("the answer is a dog, I think", "B", "A"),  # the article is taken for a letter
        ("Answer is **c**", None, "C"),
        ("answer is d", None, None),  # no such option
        ("a dog as far as can be seen in it", "B", None),  # 33 characters; the options have 14
        ("a dog as far as can be seen", "B", "B"),  # 27
        ("Cannot determine the answer B", "Z", "Z"),
        ("Failed to obtain answer via API B", None, None),
        ("Failed to obtain answer via API: dog", "B", None),
    ],
)
def test_letters_from_replies(reply, in_2024, today):
    assert letter_2024(reply, PETS) == in_2024
    assert letter_today(reply, PETS) == today


def test_failed_call_is_still_compared_with_option_texts():
    long = {"A": "cat", "B": "dog " * 10}
    assert letter_today("Failed to obtain answer via API: cat A", long) == "A"


def test_circular_figures(score):
    perception = {"category": "scene", "l2-category": "coarse_perception"}
    rows = [
        row(1, "xy", "A"),
        row(2, "xy", "B", **perception),
        row(3, "xyz", "C", **perception),
        row(1_000_001, "yx", "B"),
        row(1_000_002, "yx", "A", **perception),
        row(1_000_003, "zxy", "A", **perception),
        row(2_000_003, "yzx", "B", **perception),
    ]
    right = {entry["index"]: entry["answer"] for entry in rows}
    result = score(rows, [*{**right, 1_000_002: "B"}.items()][::-1])  # answers in another order
    assert result.value == 100 * (2 / 3) and result.remarks == []
    assert result.parts == {
        "overall": 100 * (2 / 3),
        "CP": 50.0,
        "LR": 100.0,
        "ocr": 100.0,
        "scene": 50.0,
        "row_accuracy": 100 * (6 / 7),
        "base_row_accuracy": 100.0,
    }
    assert [(entry.question_id, entry.score) for entry in result.questions] == [(1, 1.0), (2, 0.0), (3, 1.0)]
    assert (result.variant, result.metric) == ("letter", "circular accuracy")
    expected = [
        "split    dev",
        f"Overall  {2 / 3}",
        "CP       0.5",
        "LR       1.0",
        "ocr      1.0",
        "scene    0.5",
    ]
    assert result.report.split("\n")[1:-1] == expected
    assert set(result.report.split("\n")[0]) == {"-", " "}


def test_variants_differ(score):
    rows = [row(index, ["cat", "dog"]) for index in range(5)]
    replies = [(0, "A"), (1, "A."), (2, "cat"), (3, "A is what I would say"), (4, "the answer is a dog")]
    values = {name: score(rows, replies, name).parts["row_accuracy"] for name in mmbench.VARIANTS}
    assert values == {"letter": 20.0, "vlmevalkit-2024": 80.0, "vlmevalkit": 80.0}
    by_question = [entry.score for entry in score(rows, replies, "vlmevalkit").questions]
    assert by_question == [1.0, 1.0, 1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="no variant 'server'"):
        score(rows, replies, "server")


def test_untidy_answers(score):
    rows = [row(index, ["nine", "nan and more", "an", "5"], "ABCD"[index - 1]) for index in (1, 2, 3, 4)]
    replies = [(1, "B"), (1, "A"), (99, "A"), ("2", "B"), (3, None), (4.0, 5), ([2], "B")]
    result = score(rows, replies, "vlmevalkit")
    # Missing and null replies are "nan", which contains option C of question 3, as it does for question 2.
    assert [entry.score for entry in result.questions] == [1.0, 0.0, 1.0, 1.0]
    told = {(remark.question_id, remark.skipped): remark.what for remark in result.remarks}
    assert set(told) == {
        (1, True),
        (99, True),
        ("2", True),
        ("[2]", True),
        (3, False),
        (4, False),
        (2, False),
    }
    assert "last answer" in told[1, True] and "no such question" in told["2", True]
    assert "None" in told[3, False] and "taken as text" in told[4, False] and "no answer" in told[2, False]
    assert result.skipped == 4 and score(rows, replies).value == 25.0


@pytest.mark.parametrize("text", ["None", "N/A", "null", "", "nan"])
def test_replies_that_upload_sheets_lose(score, text):
    rows = [row(1, ["none", "n/a null x", "an"], "C")]
    assert score(rows, [(1, text)], "vlmevalkit-2024").value == 100.0  # the "an" of "nan"


def test_numbers_as_options_are_read_as_pandas_reads_them(score):
    rows = [row(1, ["1", "2", "3"], "C"), row(2, ["1", "2"], "B")]
    # Column C has an empty cell, so that its 3 has become 3.0.
    assert [q.score for q in score(rows, [(1, "3"), (2, "2")], "vlmevalkit").questions] == [0.0, 1.0]
    assert [q.score for q in score(rows, [(1, "it is 3.0"), (2, "2")], "vlmevalkit").questions] == [1.0, 1.0]


def test_numbers_as_answers_are_read_as_sheets_give_them():
    assert [mmbench.reply_of(text) for text in (5.0, 5, 0.5, True, float("nan"))] == [
        "5",
        "5",
        "0.5",
        "True",
        "nan",
    ]


def test_answer_behind_a_lost_option_is_told(score):
    result = score([row(1, ["cat", "None", "dog"], "C"), row(2, "xy")], [(1, "C"), (2, "A")])
    (remark,) = result.remarks
    assert remark.question_id == 1 and "(A)" in remark.what and not remark.skipped
    assert result.value == 100.0


def test_rotation_without_its_question_is_left_out(score):
    result = score([row(1, "xy"), row(1_000_002, "xy")], [(1, "A"), (1_000_002, "B")])
    assert result.value == 100.0 and [entry.question_id for entry in result.questions] == [1]
    assert [(remark.question_id, remark.skipped) for remark in result.remarks] == [(1_000_002, True)]
    assert result.parts["row_accuracy"] == 50.0


def test_wrong_files_to_score(score, data, files):
    with pytest.raises(ValueError, match=r"test split.*convert_mmbench_for_submission"):
        score([row(1, "xy", "")], [(1, "A")])
    with pytest.raises(ValueError, match=r"answers\.jsonl.*wrong split"):
        score([row(1, "xy")], [(7, "A"), ("1", "A")])
    folder = data([row(1, "xy")])
    (folder / "broken.jsonl").write_text('{"question_id": 1, "text": "A"}\n{"question_id": 1, "te')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2"):
        mmbench.score(folder, folder / "broken.jsonl")
    with pytest.raises(FileNotFoundError, match="mmbench_dev_20230712.tsv"):
        mmbench.score(folder / "elsewhere", folder / "broken.jsonl")


def test_another_table_alone_in_the_folder_is_scored(data, files):
    folder = data([row(1, "xy")], name="mmbench_dev_cn_20231003.tsv")
    answers = files.lines(folder / "a.jsonl", [{"question_id": 1, "text": "A"}])
    assert mmbench.score(folder, answers).value == 100.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1, "xy"), row("one", "xy")], r"row 2: the index 'one' is no whole number"),
        ([row(1, "xy"), row(2, "xy"), row(1, "xy")], r"row 3: the index '1' stands in the table twice"),
        ([row(1, "xy"), row(2, "xy", image="%%%")], r"row 2: the image of question 2 is not base64"),
        ([row(1, "xy", image="abc")], r"row 1: the image of question 1 is not base64"),
        ([row(1, "xy", image="")], r"row 1: the image of question 1 is missing"),
        ([row(1, "xy", question=" ")], r"row 1: question 1 has no text"),
        ([], "holds no questions"),
    ],
)
def test_broken_tables_are_found_before_a_run(data, rows, message):
    with pytest.raises(ValueError, match=message):
        get_benchmark("mmbench").check_questions(data(rows))


def test_files_that_are_no_tables(data):
    folder = data([row(1, "xy")], columns=["index", "question", "image"])
    with pytest.raises(ValueError, match="line 1 has no column A"):
        mmbench_questions.read_questions(folder / mmbench_questions.QUESTIONS)
    with (data([row(1, "xy")]) / mmbench_questions.QUESTIONS).open("a") as file:
        file.write("\t".join(["2"] * (len(COLUMNS) + 1)))
    with pytest.raises(ValueError, match=r"mmbench_dev_20230712.tsv is not a table.*line 3"):
        get_benchmark("mmbench").check_questions(folder)
    (folder / mmbench_questions.QUESTIONS).write_bytes(b"index\tquestion\tA\n1\t\xff\xfe\tx\n")
    with pytest.raises(ValueError, match="is not a table"):
        get_benchmark("mmbench").check_questions(folder)
    (folder / mmbench_questions.QUESTIONS).write_text("")
    with pytest.raises(ValueError, match="is not a table"):
        get_benchmark("mmbench").check_questions(folder)


def items_of(folder, *flags):
    arguments = ["--question-file", str(folder / mmbench_questions.QUESTIONS), *flags]
    return read_items(model_vqa_mmbench.build_parser().parse_args(arguments))


def test_questions_as_llava_asks_them(data):
    folder = data([row(7, ["10", "20", "30"], hint="Look.\nWell."), row(8, "xy", hint="nan")])
    first, second = items_of(folder, "--single-pred-prompt")
    assert first.head == {
        "question_id": 7,
        "round_id": 0,
        "prompt": "Look.\nWell.\nWhat?\nA. 10\nB. 20\nC. 30",
        "options": ["10", "20", "30"],
        "option_char": ["A", "B", "C"],
    }
    assert json.dumps(first.head)
    assert first.text == first.head["prompt"] + (
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert second.head["prompt"] == "What?\nA. x\nB. y"
    assert items_of(folder)[0].text == first.head["prompt"]
    chinese = items_of(folder, "--single-pred-prompt", "--lang", "cn")[0]
    assert chinese.text == first.head["prompt"] + "\n请直接回答选项字母。"
    check_items([first, second], "")
    numbers = items_of(data([row(7, ["01", "2.50"])]))[0]
    assert numbers.head["options"] == ["01", "2.50"]


def test_all_rounds_turn_the_options_to_the_left(data):
    items = items_of(data([row(7, ["p", "q", "r"]), row(8, "xy")]), "--all-rounds")
    assert [(item.head["question_id"], item.head["round_id"]) for item in items] == [
        (7, 0), (7, 1), (7, 2), (8, 0), (8, 1),
    ]  # fmt: skip
    assert items[1].head["prompt"] == "What?\nA. q\nB. r\nC. p"
    assert items[1].head["options"] == ["q", "r", "p"] and items[1].head["option_char"] == ["B", "C", "A"]
    assert items[2].head["options"] == ["r", "p", "q"] and items[2].head["option_char"] == ["C", "A", "B"]


def test_a_missing_flag_means_its_default(data):
    folder = data([row(7, "xy")])
    plain = argparse.Namespace(question_file=str(folder / mmbench_questions.QUESTIONS))
    assert read_items(plain) == items_of(folder) != items_of(folder, "--single-pred-prompt")


def test_options_end_at_the_first_empty_one(data, caplog):
    folder = data([row(7, ["p", "None", "r"]), row(8, ["p", "NONE", "r"]), row(9, ["p", "q", "", ""])])
    with caplog.at_level("WARNING"):
        items = items_of(folder)
    assert [item.head["options"] for item in items] == [["p"], ["p"], ["p", "q"]]
    assert "2 questions lose options" in caplog.text and "question 7" in caplog.text


def test_images_come_from_the_table_as_rgb(data):
    folder = data([row(7, "xy", image=png(200, "L"))])
    (image,) = prepare(items_of(folder)[0], "").images
    assert image.mode == "RGB" and image.size == (2, 3) and image.getpixel((0, 0)) == (200, 200, 200)


def test_defaults_are_llavas():
    args = model_vqa_mmbench.build_parser().parse_args([])
    assert (args.max_new_tokens, args.conv_mode, args.lang) == (1024, "llava_v1", "en")
    assert not args.all_rounds and not args.single_pred_prompt


@pytest.fixture(scope="module")
def converter():
    return load_script("convert_mmbench_for_submission")


def sheet_of(path):
    """Cells of the only sheet, read strictly: every text a plain string."""
    book = openpyxl.load_workbook(path)
    assert len(book.sheetnames) == 1
    cells = [[cell for cell in line] for line in book.active.iter_rows()]
    assert all(cell.data_type in ("s", "inlineStr", "n") for line in cells for cell in line)
    return [[cell.value for cell in line] for line in cells]


def convert(converter, folder, experiment):
    flags = {"annotation-file": folder / mmbench_questions.QUESTIONS, "result-dir": folder / "answers"}
    flags |= {"upload-dir": folder / "upload", "experiment": experiment}
    converter.main([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    return folder / "upload" / f"{experiment}.xlsx"


def test_upload_sheet(converter, data, files, capsys):
    rows = [
        row(index, ["cat", "=dog", "None"], "B", hint="h", comment="c") for index in (1, 2, 3, 4, 1_000_001)
    ]
    folder = data(rows)
    replies = [(2, "first"), (1, "=A"), (2, "Ünï, (B)."), (99, "A"), (3, "bell \a"), (4, None)]
    lines = [{"question_id": index, "text": text} for index, text in replies]
    files.lines(folder / "answers/model.jsonl", lines)
    sheet = sheet_of(convert(converter, folder, "model"))
    assert sheet[0] == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert [line[0] for line in sheet[1:]] == [1, 2, 3, 4, 1_000_001]
    assert [line[6] for line in sheet[1:]] == ["=A", "Ünï, (B).", "bell \ufffd", None, None]
    assert sheet[1] == [1, "What?", "cat", "=dog", None, None, "=A", "B", "dev"]
    assert "4 remarks" in capsys.readouterr().err


def test_upload_of_a_test_split_and_of_merged_answers(converter, data, files):
    folder = data([row(1, "xy")], columns=[name for name in COLUMNS if name not in ("answer", "comment")])
    files.lines(folder / "answers/model/merge.jsonl", [{"question_id": 1, "text": "A"}])
    sheet = sheet_of(convert(converter, folder, "model"))
    assert sheet == [
        ["index", "question", "A", "B", "C", "D", "prediction", "split"],
        [1, "What?", "x", "y", None, None, "A", "dev"],
    ]


def test_upload_of_wrong_answers_is_refused(converter, data, files):
    folder = data([row(1, "xy")])
    files.lines(folder / "answers/model.jsonl", [{"question_id": 2, "text": "A"}])
    with pytest.raises(SystemExit, match="wrong split"):
        convert(converter, folder, "model")
    with pytest.raises(SystemExit, match=r"none\.jsonl does not exist"):
        convert(converter, folder, "none")
    assert not (folder / "upload").exists()


# Stands for `python` where a model would answer: every question of the table gets its letter.
STUB = f"""#!{sys.executable}
import csv, json, os, sys
arguments = sys.argv[1:]
if arguments[:2] != ["-m", "llava.eval.model_vqa_mmbench"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
flags = dict(zip(arguments, arguments[1:]))
csv.field_size_limit(10**9)
meta = dict(exit_layer=1, tokens_per_layer=[9, 4], tflops=1, decoder_tflops=1, seconds=1, prompt_tokens=9,
            visual_tokens=5)
with open(flags["--answers-file"], "w") as out:
    for row in csv.DictReader(open(flags["--question-file"]), delimiter="\\t"):
        out.write(json.dumps(dict(question_id=int(row["index"]), text=row["answer"], metadata=meta)) + "\\n")
from tests.fixtures.answering import mark
mark(flags["--answers-file"])
with open(os.environ["CALLS"], "w") as calls:
    calls.write(" ".join(arguments))
"""


@pytest.mark.parametrize(
    ("script", "split", "result"),
    [("mmbench", "mmbench_dev_20230712", "record"), ("mmbench_cn", "mmbench_dev_cn_20231003", "scores")],
)
def test_script(data, tmp_path, script, split, result):
    folder = data([row(1, "xy"), row(1_000_001, "yx", "B")], name=f"{split}.tsv")
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    settings = {"PYTHON": stub, "DATA": folder, "CALLS": tmp_path / "calls", "MODEL": "some/model", "OUT": ""}
    environment = {**os.environ, **{key: str(value) for key, value in settings.items()}}
    command = ["bash", str(ROOT / f"scripts/v1_5/eval/{script}.sh")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = folder / "answers" / split / "model"
    content = json.loads((out / f"{result}.json").read_text())
    assert content["score" if result == "record" else "value"] == 100.0
    sheet = sheet_of(folder / "answers_upload" / split / "model.xlsx")
    assert [line[6] for line in sheet] == ["prediction", "A", "B"]
    asked = (tmp_path / "calls").read_text()
    assert "--single-pred-prompt" in asked and ("--lang cn" in asked) == (script == "mmbench_cn")

"""Broken annotations and answers: each scorer gives the right result, or one line that names a file."""

import base64
import copy
import io
import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dyvte.benchmarks import BENCHMARKS, mme
from dyvte.benchmarks.benchmark import describe

UNREAD = "a field that nobody reads"
NUMBERS = "0123456789"
"""Ids of the ten questions of each benchmark; of POPE and MME there are more."""


def answers(ids, text="A", **more):
    return [{"question_id": i, "text": text, UNREAD: 1, **more} for i in ids]


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def gqa():
    types = {"structural": "query", "semantic": "attr", "detailed": "twoCommon"}
    steps = [{"operation": "select", "argument": "?", UNREAD: 1}]
    record = {"question": "What?", "answer": "red", "isBalanced": True, "types": types, "semantic": steps}
    record |= {"groups": {"global": "color"}, "entailed": ["1"], UNREAD: 1}
    choices = {"valid": ["red"], "plausible": ["red"], UNREAD: 1}
    return {
        "data/testdev_balanced_questions.json": {i: record for i in NUMBERS},
        "data/testdev_balanced_choices.json": {i: choices for i in NUMBERS},
        "llava_gqa_testdev_balanced.jsonl": answers(NUMBERS),
        "answers.jsonl": answers(NUMBERS, "Red."),
    }


def vqav2():
    humans = [{"answer": f"{min(i, 5)} dogs", "answer_id": i} for i in range(10)]
    record = {"question_type": "what", "answer_type": "other", "answers": humans, UNREAD: 1}
    return {
        "v2_mscoco_val2014_annotations.json": {
            UNREAD: 1,
            "annotations": [{**record, "question_id": i} for i in range(10)],
        },
        "llava_vqav2_mscoco_val2014.jsonl": answers(range(10)),
        "answers.jsonl": answers(range(10), "5 dogs"),
    }


def sqa():
    problem = {"choices": ["x", "y"], "answer": 0, "image": "image.png", "hint": "", "grade": "grade1"}
    problem |= {"subject": "natural science", UNREAD: 1}
    return {
        "problems.json": {i: problem for i in NUMBERS},
        "pid_splits.json": {"test": list(NUMBERS)},
        "llava_test_CQM-A.json": [{"id": i, UNREAD: 1} for i in NUMBERS],
        "answers.jsonl": answers(NUMBERS, prompt="<image>\nWhat?"),
    }


def textvqa():
    rows = [{"image_id": i, "question": "What?", "answers": ["x"] * 10, UNREAD: 1} for i in NUMBERS]
    asked = "What?\nAnswer the question using a single word or phrase."
    return {
        "TextVQA_0.5.1_val.json": {"data": rows, UNREAD: 1},
        "llava_textvqa_val_v051_ocr.jsonl": answers(NUMBERS, asked),
        "answers.jsonl": answers(NUMBERS, "x", prompt=asked),
    }


def pope():
    splits = ("adversarial", "popular", "random")
    rows = [
        {"question_id": 10 * s + i, "category": split} for s, split in enumerate(splits) for i in range(10)
    ]
    labels = [{"label": "yes" if i % 2 else "no", UNREAD: 1} for i in range(10)]
    return {
        **{f"coco/coco_pope_{split}.json": ("lines", labels) for split in splits},
        "llava_pope_test.jsonl": [{**row, "text": "Is it?", UNREAD: 1} for row in rows],
        "answers.jsonl": answers([row["question_id"] for row in rows], "yes"),
    }


def mme_files():
    text = "Is it? Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n"
    ids = [f"{task}/{i}.png" for task in mme.TASKS for i in range(2) for _ in "ab"]
    rows = [
        {"question_id": name, "text": text, "prompt": text, UNREAD: 1}
        for name, text in zip(ids, ["Is it?", "Is it not?"] * len(ids), strict=False)
    ]
    return {
        **{f"{mme.RELEASE}/{task}/{i}.txt": text for task in mme.TASKS for i in range(2)},
        "llava_mme.jsonl": rows,
        "answers.jsonl": [{**row, "text": "Yes"} for row in rows],
    }


def mmbench():
    head = ["index", "question", "hint", "A", "B", "answer", "category", "image", "l2-category", UNREAD]
    ids = [turn * 1_000_000 + i for turn in range(2) for i in range(5)]
    rows = [[i, "What?", "", "x", "y", "A", "ocr", picture(), "logic_reasoning", "1"] for i in ids]
    table = "".join("\t".join(map(str, row)) + "\n" for row in [head, *rows])
    return {"mmbench_dev_20230712.tsv": table, "answers.jsonl": answers(ids)}


def seed():
    row = {"question_type_id": 1, "data_type": "image", "answer": "A", UNREAD: 1}
    return {
        "SEED-Bench.json": {
            "question_type": {"Scene": 1, "Action": 2},
            "questions": [
                *({**row, "question_id": i} for i in NUMBERS),
                {**row, "question_id": "v1", "question_type_id": 2, "data_type": "video"},
            ],
        },
        "llava-seed-bench.jsonl": answers([*range(10), "v1"]),
        "answers.jsonl": answers([*range(10), "v1"]),
    }


def mmvet():
    sample = {"question": "What?", "answer": "x", "capability": ["rec", "ocr"], UNREAD: 1}
    grade = {"model": ["judge", "judge"], "content": ["0.5", "1"], "score": [0.5, 1]}
    return {
        "mm-vet.json": {f"v1_{i}": sample for i in NUMBERS},
        "llava-mm-vet.jsonl": answers(range(10), image="x.png"),
        "answers.jsonl": answers(range(10)),
        "grades/m_judge-grade-2runs.json": {f"v1_{i}": grade for i in NUMBERS},
    }


WHOLE = {
    function.__name__.removesuffix("_files"): function()
    for function in (gqa, vqav2, sqa, textvqa, pope, mme_files, mmbench, seed, mmvet)
}
"""Benchmark -> its files: text, JSON, or rows of JSON lines (where the name ends so, or marked)."""


def content_of(path, content):
    """The bytes of a file."""
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, tuple) or path.endswith("jsonl"):
        rows = content[1] if isinstance(content, tuple) else content
        return "".join(json.dumps(row) + "\n" for row in rows).encode() if isinstance(rows, list) else b""
    return json.dumps(content).encode()


def places_in(content, path=()):
    """Every place in a nest of lists and objects."""
    if isinstance(content, (list, dict)):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield (*path, key)
            yield from places_in(content[key], (*path, key))


VALUES = st.one_of(
    st.sampled_from([None, True, 0, -1, 2, 1.5, 1e308, math.nan, math.inf, 10**400, "", "0", "A", [], {}]),
    st.sampled_from([[[]], [None], {"": 1}, "\ud800", "\x00", "\u2028", "A\tB", "A\nB", "x" * 5000]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=4,
    ),
)


@st.composite
def broken(draw):
    """(benchmark, name and bytes of its broken file, whether scores cannot depend on what is broken)."""
    name = draw(st.sampled_from(sorted(WHOLE)))
    contents = WHOLE[name]
    file = draw(st.sampled_from(sorted(contents)))
    whole = content_of(file, contents[file])
    nested = copy.deepcopy(contents[file])
    places = (
        [] if isinstance(nested, str) else list(places_in(nested[1] if isinstance(nested, tuple) else nested))
    )
    if places and draw(st.booleans()):
        *path, last = draw(st.sampled_from(places))
        inside = nested[1] if isinstance(nested, tuple) else nested
        for key in path:
            inside = inside[key]
        if draw(st.integers(0, 3)):
            inside[last] = draw(VALUES)
        else:
            del inside[last]
        return name, file, content_of(file, nested), last == UNREAD or UNREAD in path
    start = draw(st.integers(0, len(whole)))
    end = draw(st.sampled_from([start, start + 1, start + 20, len(whole)]))
    put = draw(
        st.sampled_from([b"", b"\x00", b"\xff", b"\n", b"\t", b'"', b"[", b"\xef\xbb\xbf", b"9" * 6000])
    )
    put = draw(st.one_of(st.just(put), st.binary(max_size=3), st.just(b"[" * 100_000)))
    return name, file, whole[:start] + put + whole[end:], False


def score(name, changed):
    """The score, and the check that runs before inference."""
    files = {path: content_of(path, content) for path, content in WHOLE[name].items()} | changed
    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            place = Path(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        outcomes = []
        for act in (
            lambda: BENCHMARKS[name].score(
                Path(folder), Path(folder, "answers.jsonl"), BENCHMARKS[name].variant()
            ),
            lambda: BENCHMARKS[name].check_questions(Path(folder)),
        ):
            try:
                outcomes.append(act())
            except (ValueError, OSError) as error:
                message = str(error)
                assert "\n" not in message and any(Path(path).name in message for path in files), message
                outcomes.append(None)
        return outcomes[0]


def check(case):
    name, file, content, unread = case
    found = score(name, {file: content})
    if found is None:
        assert not unread, "a file was refused for a field that nobody reads"
        return
    described = describe(BENCHMARKS[name].title, found)
    json.dumps([found.parts, [question.question_id for question in found.questions]])
    described.encode()
    most = 2800 if name == "mme" else 100
    assert 0 <= found.value <= most and all(math.isfinite(value) for value in found.parts.values())
    assert all(0 <= question.score <= 1 for question in found.questions)
    if unread:
        whole = score(name, {})
        assert whole is not None and (found.value, found.parts) == (whole.value, whole.parts)


def many(count):
    return settings(
        max_examples=count, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_whole_files_are_scored(name):
    found = score(name, {})
    assert found is not None and found.value > 0


@many(500)
@given(broken())
def test_broken_files(case):
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(36000)
@many(50_000)
@given(broken())
def test_fifty_thousand_broken_files(case):
    check(case)

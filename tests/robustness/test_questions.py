"""Files of questions, broken in every way: right, or one line that names file, line and field."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from PIL import Image

from dyvte.benchmarks.sqa import CONVERSATIONS
from dyvte.engine.questions import JSON_LINES, check_items, prepare
from tests.robustness.inputs import examine, many, right_or_refused

any_text = st.text(st.characters(), max_size=12)  # with lone surrogates, NUL and line separators
names = st.sampled_from(
    ["a.png", "b/c.png", "../a.png", "/etc/passwd", "a.png\0", "b", ".", "a" * 300, "\ud83d"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text | names
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=2)
)
ids = st.integers(0, 9) | any_text | values
texts = st.just("What is it?") | st.sampled_from(["<image>\nWhat?", "<image><image>", " ", ""]) | values
images = names | st.lists(names, max_size=3) | values
rows = st.fixed_dictionaries({}, optional={"question_id": ids, "text": texts, "image": images}) | values
conversations = st.lists(
    st.fixed_dictionaries({}, optional={"from": texts, "value": texts}) | values, max_size=2
)
entries = (
    st.fixed_dictionaries({}, optional={"id": ids, "conversations": conversations | values, "image": images})
    | values
)
encodings = st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
damages = st.none() | st.tuples(st.floats(0, 1), st.binary(max_size=3))  # where, and what is written there


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    (folder / "b").mkdir()
    for name in ("a.png", "b/c.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def write(path, text, encoding, damage):
    content = text.encode(encoding, errors="replace" if encoding == "latin-1" else "surrogatepass")
    if damage is not None:
        at = int(damage[0] * len(content))
        content = content[:at] + damage[1] + content[at + len(damage[1]) :]
    path.write_bytes(content)


def ask_all(questions, path, folder):
    """What a run does before and while it asks."""
    items = questions.read(SimpleNamespace(question_file=str(path)))
    check_items(items, folder)
    for item in items:
        question = prepare(item, folder)
        assert question.text.strip() and question.text.encode()
        assert json.loads(json.dumps(item.head)) == item.head
        assert len(question.around_images()) == len(question.images) + 1


@many(700)
def test_json_lines(folder, examples):
    path, asked = folder / "questions.jsonl", []

    def check(drawn):
        lines, ascii_only, encoding, damage = drawn
        write(
            path, "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in lines), encoding, damage
        )
        with right_or_refused(str(path)):
            ask_all(JSON_LINES, path, folder)
            asked.append(len(lines))

    examine(examples, st.tuples(st.lists(rows, max_size=4), st.booleans(), encodings, damages), check)
    assert len(asked) > examples / 100 and max(asked), "too few of the files are right"


@many(500)
def test_lists_of_conversations(folder, examples):
    path = folder / "questions.json"

    def check(drawn):
        content, encoding, damage = drawn
        write(path, json.dumps(content), encoding, damage)
        with right_or_refused(str(path)):
            ask_all(CONVERSATIONS, path, folder)

    examine(examples, st.tuples(st.lists(entries, max_size=3) | values, encodings, damages), check)


@many(200)
def test_bytes(folder, examples):
    path = folder / "bytes.jsonl"
    pieces = st.sampled_from(
        [b'{"question_id": 1, "text": "a"}\n', b"[" * 5000, b'{"a":' * 5000, b"1" * 5000, b"\n"]
    )

    def check(content):
        path.write_bytes(b"".join(content))
        with right_or_refused(str(path)):
            ask_all(JSON_LINES, path, folder)

    examine(examples, st.lists(pieces | st.binary(max_size=40), max_size=4), check)

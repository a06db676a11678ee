"""Questions and training records are read one by one, whatever the size of their file."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dyvte.engine import json_rows
from dyvte.engine.answers_file import AnswersFile
from dyvte.engine.instructions import check_records, data_digest, modality_lengths, read_records
from dyvte.engine.questions import JSON_LINES, check_items
from dyvte.engine.run import get_chunk
from dyvte.gates.sample import main as draw_sample
from dyvte.io import read_json
from tests.robustness.outcome import FEW

COUNT = 20_000


def test_memory_does_not_grow_with_the_file(tmp_path):
    """24 bytes a question, while they are read, checked, answered and resumed; as Items, about a thousand."""
    with (tmp_path / "q.jsonl").open("w") as file:
        for number in range(COUNT):
            file.write(json.dumps({"question_id": number, "text": "What is it? " * 9}) + "\n")
    tracemalloc.start()
    items = JSON_LINES.read(SimpleNamespace(question_file=str(tmp_path / "q.jsonl")))
    check_items(items, tmp_path)
    for _ in range(2):
        with AnswersFile(str(tmp_path / "a.jsonl"), {}, "m", items) as answers:
            for item in items[answers.kept :]:
                answers.write([{**item.head, "text": "red", "model_id": "m"}])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answers.kept == len(items) == COUNT
    assert peak < 24 * COUNT + 12e6, peak  # and a fixed part: the first lines' bounds before they are packed


def test_slices_and_maps(tmp_path):
    lines = [
        '{"question_id": 1, "text": "a"}',
        "",
        "  ",
        '{"question_id": 2, "text": "b"}',
        '{"question_id": 3}',
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    items = JSON_LINES.read(SimpleNamespace(question_file=str(tmp_path / "q.jsonl")))
    assert [item.head["question_id"] for item in items] == [1, 2, 3]
    assert [item.place.rpartition(" ")[2] for item in items] == ["1", "4", "5"]
    assert [item.text for item in get_chunk(items, 2, 0)] == ["a", "b"] and items[-1].head["question_id"] == 3
    assert len(items[1:][:1]) == 1 and items[1:][0].text == "b"


def test_memory_does_not_grow_with_training_data(tmp_path, capsys):
    """The same for instruction data, a list: while it is checked and drawn from, and its digest is taken."""
    count = 2000
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "red " * 3000}]
    one = json.dumps({"id": "a", "image": "a.png", "conversations": turns}, indent=2)
    (tmp_path / "a.png").touch()
    with (tmp_path / "all.json").open("w") as file:
        file.write("[\n" + f"{one},\n" * (count - 1) + f"{one}\n]\n")
    tracemalloc.start()
    records = read_records(tmp_path / "all.json")
    check_records(records, tmp_path / "all.json", tmp_path)
    assert len(modality_lengths(records)) == len(records) == count
    data_digest(tmp_path / "all.json", records, tmp_path)
    flags = ["--data-path", str(tmp_path / "all.json"), "--output", str(tmp_path / "o.json")]
    draw_sample([*flags, "--image-folder", str(tmp_path), "--fraction", "0.9"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * count + 2e6, peak  # lists of places and lengths; a record takes 12,000 bytes
    drawn = json.loads((tmp_path / "o.json").read_text())
    assert drawn == [json.loads(one)] * (9 * count // 10)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@FEW
@given(
    st.lists(values, max_size=4) | values,
    st.sampled_from((None, 1)),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(b'[]{},:"0e. \n\x80')), max_size=2),
)
@example([1, 2], None, False, [(4, ord(" "))])
@example([1, 2], None, False, [(4, ord(","))])
@example([0, 0, 0], None, False, [(7, ord(","))])
@example([], None, False, [])
def test_a_list_is_read_as_json_reads_it(tmp_path_factory, content, indent, is_ascii, changes):
    """Windows of one byte: every value goes over a border. What is no JSON is told in the same words."""
    path = tmp_path_factory.mktemp("list") / "a.json"
    text = bytearray(
        json.dumps(content, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    )
    for at, value in changes:
        text[at % len(text)] = value
    path.write_bytes(text)
    try:
        expected = read_json(path)
    except ValueError as error:
        expected = str(error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_WINDOW", 1)
        try:
            found = json_rows.JsonRows(path, lambda value, place: value, is_list=True)
        except ValueError as error:
            assert str(error) == expected
            return
    expected = expected if isinstance(expected, list) else []
    assert repr(list(found)) == repr(expected)  # repr, for NaN


def test_training_data_goes_to_worker_processes(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"a": 1}, {"a": "\u00e9"}, 3], ensure_ascii=False))
    records = pickle.loads(pickle.dumps(read_records(tmp_path / "a.json")))
    assert list(records) == [{"a": 1}, {"a": "\u00e9"}, 3] and list(records[1:]) == [{"a": "\u00e9"}, 3]

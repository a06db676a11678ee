"""Questions are read one by one, whatever the size of their file."""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace

from dyvte.engine.answers_file import AnswersFile
from dyvte.engine.questions import JSON_LINES, check_items
from dyvte.engine.run import get_chunk

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

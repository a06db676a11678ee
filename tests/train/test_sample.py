"""Drawing the sample that gates are trained on."""

from __future__ import annotations

import json

import pytest

from dyvte.gates.sample import draw, first_turn, main


def record(name: int, question: str = "<image>\nWhat?", answer: str = "red", turns: int = 1, **more) -> dict:
    conversation = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    conversation += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "blue"}] * (turns - 1)
    return {"id": name, "image": f"{name}.png", "conversations": conversation, **more}


REFUSED = {
    "text only": {**record(0), "image": None},
    "several images": record(0, image=["a.png", "b.png"]),
    "missing fields": {"id": 0, "image": "a.png"},
    "does not begin with a question and an answer": {
        **record(0),
        "conversations": record(0)["conversations"][1:],
    },
    "first question does not hold the image": record(0, question="What?"),
    "empty answer": record(0, answer=" "),
}


@pytest.mark.parametrize("reason", list(REFUSED))
def test_what_is_left_out_is_counted(reason):
    places, report = draw([REFUSED[reason], record(1)], 1.0, 0)
    assert places == [1]
    assert report["left_out"] == {reason: 1} and report["usable"] == 1 and report["wanted"] == 2


def test_one_turn_of_each_and_order_of_the_file():
    records = [record(index, turns=1 + index % 3) for index in range(1000)]
    places, report = draw(records, 0.05, 0)
    assert len(places) == report["drawn"] == 50
    assert places == sorted(places)
    assert report["usable_cut_to_first_turn"] == 666
    sample, _ = first_turn(records[1])
    assert sample is not None and len(sample["conversations"]) == 2
    assert len(records[1]["conversations"]) == 4  # the input is left as it was


def test_seed_decides():
    records = [record(index) for index in range(1000)]
    assert draw(records, 0.1, 0) == draw(records, 0.1, 0)
    assert draw(records, 0.1, 0)[0] != draw(records, 0.1, 1)[0]


def test_command_line(tmp_path, capsys):
    (tmp_path / "all.json").write_text(
        json.dumps([record(index) for index in range(200)] + [REFUSED["text only"]])
    )
    (tmp_path / "7.png").touch()
    output = tmp_path / "deep" / "gates.json"
    main(["--data-path", str(tmp_path / "all.json"), "--output", str(output)])
    samples = json.loads(output.read_text())
    assert len(samples) == 2 and output.read_text() == json.dumps(samples, indent=1) + "\n"
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["left_out"] == {"text only": 1} and report["fraction"] == 0.01
    assert '"text only": 1' in capsys.readouterr().out
    main(
        ["--data-path", str(tmp_path / "all.json"), "--output", str(output), "--image-folder", str(tmp_path)]
    )
    assert [sample["id"] for sample in json.loads(output.read_text())] == [7]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="--fraction"):
        draw([record(0)], 0, 0)
    with pytest.raises(ValueError, match="no sample"):
        draw([REFUSED["empty answer"]], 1, 0)

"""Table 4: what stands where, KV bytes, the Pareto front, and VTW's search from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from dyvte.report import rivals_table
from dyvte.report.record import ResultRecord, measurements, reports_of
from dyvte.study import pareto, vtw_search

LLAVA = "liuhaotian/llava-v1.5-7b"
SCORES = {"none": 60.0, "fastv": 58.0, "dyvte+fastv": 57.0, "dyvte": 61.0}


@pytest.fixture
def folder(make_record, tmp_path):  # noqa: F811
    """Records of four methods on the paper's benchmarks; FastV's of MM-Vet is missing."""
    for method, score in SCORES.items():
        for place, name in enumerate(("sqa", "mmvet", "seed", "mmbench")):
            if (method, name) == ("fastv", "mmvet"):
                continue
            record = make_record(
                model=LLAVA,
                benchmark=name,
                method=method,
                score=score + place,
                tflops=9.0 - place / 2 if method == "none" else 5.0,
                kv_bytes=2.0**20 * (place + 1),
                seconds=0.25,
                settings={"batch_size": "1", "threshold": "0.5"},
            )
            record.write(tmp_path / name / method / "record.json")
    return tmp_path


def test_table4_in_all_three_forms(folder, tmp_path):
    rivals_table.main([str(folder), "--out", str(tmp_path / "out")])
    markdown = (tmp_path / "out/table4.md").read_text()
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[:1] == "|"
    ]
    assert lines[0][:2] == ["Model", "Method"] and lines[0][-4:] == ["Average", "TFLOPs", "KV MiB", "Seconds"]
    assert [line[1] for line in lines[2:]] == ["Baseline", "FastV", "DyVTE", "DyVTE + FastV"]
    at = lines[0].index("SQA-I")
    assert lines[2][at : at + 2] == ["60.0 (69.4, -9.4)", "9 (9.8, -0.8)"], (
        "ours, the paper's, the difference"
    )
    # by hand: the mean of 60..63 is 61.5, of 9, 8.5, 8, 7.5 it is 8.25, of 1, 2, 3, 4 MiB it is 2.5
    assert lines[2][-4:] == ["61.5 (55.7, +5.8)", "8.25 (9.3, -1.1)", "2.5", "0.25"]
    at = lines[0].index("MM-Vet")
    assert lines[3][at] == "-" and lines[3][-4:] == ["-"] * 4, "no average of an incomplete row"
    assert lines[5][lines[0].index("SEED")] == "59.0 (58.2, +0.8)"
    assert "separate runs" in markdown and "were the same" in markdown
    latex = (tmp_path / "out/table4.tex").read_text()
    assert latex.count(r"\\") == 5 and "DyVTE + FastV & " in latex
    rows = list(csv.DictReader((tmp_path / "out/table4.csv").open()))
    assert len(rows) == 15 + 3
    seed = next(row for row in rows if (row["method"], row["benchmark"]) == ("dyvte", "SEED"))
    assert (seed["score"], seed["paper_score"], seed["kv_bytes"]) == ("63.0", "58.6", "3145728.0")
    assert Path(seed["record"]) == folder / "seed/dyvte/record.json"
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    rivals_table.main([str(folder), "--out", str(tmp_path / "out")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_seconds_of_other_machines_are_named(make_record):  # noqa: F811
    records = [
        (Path("a"), make_record(settings={"batch_size": "1"})),
        (Path("b"), make_record(method="fastv", settings={"batch_size": "16"})),
    ]
    table = rivals_table.table_of(records)
    assert "not comparable: the runs differ in batch_size." in table.markdown()
    assert table.texts()[1][-2:] == ["-", "0.5"], "older records hold no KV bytes"
    with pytest.raises(ValueError, match="same model, method, label and benchmark"):
        rivals_table.table_of([*records, (Path("c"), records[0][1])])


def test_kv_bytes_of_a_record_are_those_of_the_trace(flags, checkpoint, gqa, tmp_path):
    from dyvte.study import fixed_exits
    from llava.model.language_model.llava_llama import LlavaConfig

    fixed_exits.main([*flags, "--output", str(tmp_path), "--layers", "0"])
    config = LlavaConfig.from_pretrained(checkpoint)
    heads = config.num_key_value_heads or config.num_attention_heads
    width = config.hidden_size // config.num_attention_heads
    lines = [json.loads(line) for line in (tmp_path / "exit0/merge.jsonl").read_text().splitlines()]
    expected = []
    for line in lines:
        prompt, visual = line["metadata"]["prompt_tokens"], line["metadata"]["visual_tokens"]
        assert visual > 0
        tokens = prompt + (config.num_hidden_layers - 1) * (prompt - visual)
        expected.append(tokens * 2 * heads * width * 4)  # keys and values, float32
    assert [line["metadata"]["kv_bytes"] for line in lines] == expected
    record = ResultRecord.read(tmp_path / "exit0/record.json")
    assert record.kv_bytes == pytest.approx(sum(expected) / len(expected))
    del lines[0]["metadata"]["kv_bytes"]
    texts = [line["text"] for line in lines]
    assert measurements(reports_of(lines, "merge.jsonl"), texts)["kv_bytes"] is None
    scores = json.loads((tmp_path / "exit0/scores.json").read_text())
    assert 100 * sum(row["score"] for row in scores) / len(scores) == pytest.approx(record.score)


def test_records_without_kv_bytes_are_read(make_record, tmp_path):  # noqa: F811
    make_record().write(tmp_path / "record.json")
    content = json.loads((tmp_path / "record.json").read_text())
    del content["kv_bytes"]
    (tmp_path / "record.json").write_text(json.dumps(content))
    assert ResultRecord.read(tmp_path / "record.json").kv_bytes is None
    del content["seconds"]
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="seconds"):
        ResultRecord.read(tmp_path / "record.json")


def test_pareto_front_by_hand():
    #         dearest, best   cheapest     dominated by 3   on the front   same score as 3, dearer
    points = [(9.0, 60.0), (2.0, 40.0), (5.0, 50.0), (4.0, 55.0), (4.5, 55.0)]
    assert pareto.pareto_front(points) == [1, 3, 0]
    assert pareto.pareto_front([(1.0, 2.0), (1.0, 2.0)]) == [0, 1]
    assert pareto.pareto_front([(1.0, 2.0), (1.0, 3.0)]) == [1]


def test_pareto_plot(folder, tmp_path):
    pareto.main([str(folder), "--out", str(tmp_path / "plot")])
    first = (tmp_path / "plot.png").read_bytes(), (tmp_path / "plot.pdf").read_bytes()
    pareto.main([str(folder), "--out", str(tmp_path / "plot")])
    assert first == ((tmp_path / "plot.png").read_bytes(), (tmp_path / "plot.pdf").read_bytes())


@pytest.fixture
def search_flags(checkpoint, gqa, tmp_path):
    return [
        *("--model-path", str(checkpoint), "--data-path", str(gqa / "llava_gqa_testdev_balanced.jsonl")),
        *("--image-folder", str(gqa / "data/images"), "--output", str(tmp_path / "vtw.json"), "--first", "1"),
        *("--conv-mode", "vicuna_v1", "--batch-size", "3", "--limit", "5", "--device", "cpu"),
    ]


def test_vtw_search(search_flags, checkpoint, gqa, tmp_path, monkeypatch, capsys):
    vtw_search.main([*search_flags, "--divergence", "1e9"])
    found = json.loads((tmp_path / "vtw.json").read_text())
    assert found["k"] == 1 and found["layers"] == [1, 2] and found["samples"] == 5
    assert "k=1" in capsys.readouterr().out
    np_means = _plain_divergences(checkpoint, gqa)
    assert found["mean_divergence"] == pytest.approx(np_means, rel=1e-3)
    assert np_means[0] > np_means[1] > 0

    def refuse(*_):
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr("dyvte.study.run.open_answerer", refuse)
    before = (tmp_path / "vtw.json").read_bytes()
    vtw_search.main([*search_flags, "--divergence", "1e9"])
    assert (tmp_path / "vtw.json").read_bytes() == before
    vtw_search.main([*search_flags, "--divergence", str(sum(np_means) / 2)])
    assert json.loads((tmp_path / "vtw.json").read_text())["k"] == 2, "another threshold needs no second pass"
    with pytest.raises(SystemExit, match="no layer's mean divergence"):
        vtw_search.main([*search_flags, "--divergence", "1e-30"])
    assert json.loads((tmp_path / "vtw.json").read_text())["mean_divergence"] == found["mean_divergence"]


def _plain_divergences(checkpoint, gqa) -> list[float]:
    """Mean of sum p_exit (log p_exit - log p_full) over every second question, one at a time."""
    from argparse import Namespace

    from dyvte.decoding.policy import FixedExit, NoExit
    from dyvte.engine.options import open_answerer
    from dyvte.engine.questions import item_of, prepare, read_lines

    args = Namespace(model_path=str(checkpoint), model_base=None, method="none", device="cpu")
    answerer = open_answerer(args, "vicuna_v1")
    means = torch.zeros(2, dtype=torch.float64)
    assert answerer.handle is not None
    rows = read_lines(str(gqa / "llava_gqa_testdev_balanced.jsonl"))[::2]
    for place, row in rows:
        question = prepare(item_of(row, place), str(gqa / "data/images"))
        inputs = answerer.chat.place(answerer.batch([question])).inputs()
        logs = []
        for policy in (NoExit(), FixedExit(0), FixedExit(1)):
            answerer.handle.policy = policy
            with torch.no_grad():
                output = answerer.model(**inputs, use_cache=False)
            logs.append(log_softmax(output.logits[0, -1].double(), -1))
        for index, early in enumerate(logs[1:]):
            means[index] += (early.exp() * (early - logs[0])).sum() / len(rows)
    return means.tolist()

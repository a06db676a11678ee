"""Exits per question against one layer for all: bootstrap, equal cost, the oracle, and the files."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from dyvte.decoding.report import PrefillReport
from dyvte.report.record import ResultRecord
from dyvte.study import dynamic
from dyvte.study.answered import EARLIEST, ORACLE, Answered, read_answered
from dyvte.study.files import StudyWriter
from dyvte.study.paired import Resamples, best_cheaper, interval, score_at

QUESTIONS = 40
LAYERS = 2
COSTS = {"exit0": 1.0, "exit1": 2.0, "none": 4.0}
"""Cost of every question, in TFLOPs; DyVTE exits at layer 0 or 1, half of the questions each."""
RIGHT = {"exit0": 20, "exit1": 30, "none": 40}
"""The first so many questions are answered right."""


def test_interval_of_a_mean():
    scores = {"a": np.repeat([0.0, 100.0], 200)}
    found = interval(Resamples({"a": 400}, count=4000, seed=1).means(scores))
    # the standard error of a share of one half among 400 is 2.5 points
    assert found.value == 50
    assert found.low == pytest.approx(50 - 1.96 * 2.5, abs=0.4)
    assert found.high == pytest.approx(50 + 1.96 * 2.5, abs=0.4)


def test_intervals_are_paired_and_seeded():
    generator = np.random.default_rng(0)
    scores = 100.0 * generator.integers(0, 2, 50)
    better = scores + 3
    resamples = Resamples({"a": 50}, count=200, seed=3)
    gain = interval(resamples.means({"a": better}) - resamples.means({"a": scores}))
    assert gain.low == pytest.approx(3) and gain.high == pytest.approx(3), "the same questions for both"
    again = Resamples({"a": 50}, count=200, seed=3).means({"a": scores})
    np.testing.assert_array_equal(again, resamples.means({"a": scores}))
    assert interval(again).high > interval(again).low


def test_benchmarks_count_alike_whatever_their_size():
    resamples = Resamples({"a": 10, "b": 1000}, count=100)
    assert resamples.means({"a": np.full(10, 100.0), "b": np.zeros(1000)}) == pytest.approx(50)


def test_score_at_equal_cost_by_hand():
    costs, scores = np.array([[4.0, 1.0, 2.0]] * 4), np.array([[100.0, 20.0, 40.0]] * 4)
    found = score_at(costs, scores, np.array([3.0, 1.5, 0.5, 9.0]))
    # 40 + 60 * (3 - 2) / (4 - 2); 20 + 20 * 0.5; beyond the ends as at the ends
    assert found.tolist() == [70, 30, 20, 100]


def test_best_setting_that_costs_no_more_by_hand():
    costs = np.array([[1.0, 2.0, 4.0]] * 4)
    scores = np.array([[20.0, 40, 100], [50, 50, 60], [60, 50, 100], [20, 40, 100]])
    chosen, fits = best_cheaper(costs, scores, np.array([3.0, 2.0, 2.0, 0.5]))
    # of equal scores the cheapest; where all cost more, the cheapest
    assert chosen.tolist() == [1, 0, 0, 0] and fits.tolist() == [True, True, True, False]


def test_the_interval_covers_the_choice_of_the_layer():
    """Two layers of equal cost whose scores differ by chance: each resample takes the better of the two."""
    count, draw = 60, np.random.default_rng(2)
    right = {
        "0": 100.0 * draw.permutation(np.arange(count) < 30),
        "1": 100.0 * draw.permutation(np.arange(count) < 31),
    }
    keys = tuple((str(number), 0) for number in range(count))

    def answered(method, scores, cost, layer=None):
        return Answered(f"{method} {layer}", method, keys, scores, np.full(count, cost), layer)

    methods = [
        answered("none", np.full(count, 100.0), 9.0),
        *(answered("fixed", scores, 1.0, int(layer)) for layer, scores in right.items()),
        answered("dyvte", np.full(count, 50.0), 1.0),
    ]
    resamples = Resamples({"gqa": count}, count=500)
    (ours,) = dynamic.scope_of({"gqa": methods}, resamples)["rows"]
    means = np.stack([resamples.means({"gqa": scores}) for scores in right.values()], 1)
    expected = interval(50 - means.max(1))
    assert ours["over_cheaper"] == pytest.approx(asdict(expected)) and ours["fixed_layer"] == "1"
    assert expected.high < interval(50 - means[:, 1]).high - 1, "choosing shifts the interval"


def measured(tflops, visual_tokens):
    report = PrefillReport(
        exit_layer=None,
        tokens_per_layer=(10,) * LAYERS,
        tflops=tflops,
        decoder_tflops=tflops,
        prompt_tokens=10,
        visual_tokens=visual_tokens,
    )
    return report.as_dict()


@pytest.fixture
def folder(make_record, tmp_path):  # noqa: F811
    """Two benchmarks with every fixed exit, DyVTE with two thresholds, and FastV; text-only questions beside them."""

    def write(benchmark, name, method, settings, right, costs):
        place = tmp_path / "results" / benchmark / name
        record = make_record(
            benchmark=benchmark,
            method=method,
            settings=settings,
            num_layers=LAYERS,
            num_samples=QUESTIONS + 1,
        )
        record.write(place / "record.json")
        answers = [
            {"question_id": i, "text": "a", "metadata": measured(float(cost), 4)}
            for i, cost in enumerate(costs)
        ]
        answers.append({"question_id": "text", "text": "a", "metadata": measured(0.1, 0)})
        (place / "merge.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
        scores = [{"question_id": i, "score": float(value)} for i, value in enumerate(right)]
        (place / "scores.json").write_text(json.dumps([*scores, {"question_id": "text", "score": 1.0}]))

    numbers = np.arange(QUESTIONS)
    for benchmark in ("gqa", "pope"):
        for name, cost in COSTS.items():
            method = "none" if name == "none" else "fixed"
            settings = {} if name == "none" else {"exit_layer": name[-1]}
            write(benchmark, name, method, settings, numbers < RIGHT[name], np.full(QUESTIONS, cost))
        early = numbers < 20  # these exit at layer 0, the others not at all in gqa, and at layer 1 in pope
        costs = np.where(early, 1.0, 4.0 if benchmark == "gqa" else 2.0)
        write(benchmark, "dyvte", "dyvte", {"threshold": "0.5"}, numbers < 40, costs)
        write(benchmark, "sure", "dyvte", {"threshold": "0.9"}, numbers < 40, np.full(QUESTIONS, 4.0))
        write(benchmark, "fastv", "fastv", {"method_config": "k=2"}, numbers < 10, np.full(QUESTIONS, 3.0))
        write(benchmark, "cheap", "pooling", {}, numbers < 10, np.full(QUESTIONS, 0.5))
    return tmp_path / "results"


def rows_of(result, scope):
    return {row["label"]: row for row in result["scopes"][scope]["rows"]}


def run(folder, out, *more):
    dynamic.main([str(folder), "--output", str(out), "--resamples", "300", *more])
    return json.loads((out / "dynamic.json").read_text())


def test_gates_against_fixed_exits(folder, tmp_path):
    result = run(folder, tmp_path / "out")
    assert result["scopes"]["gqa"]["questions"] == QUESTIONS, "without the question that has no image"
    assert result["scopes"]["gqa"]["fixed_scores"] == [50, 75, 100]
    ours = rows_of(result, "gqa")["DyVTE"]
    assert (ours["score"], ours["cost"]) == (100, 2.5)
    # at 2.5 a quarter of the way from layer 1 (75 at 2) to no exit (100 at 4): 81.25
    assert ours["over_fixed"]["value"] == pytest.approx(18.75) and ours["over_fixed"]["low"] > 0
    assert ours["fixed_layer"] == "1" and ours["over_cheaper"]["value"] == pytest.approx(25)
    pope = rows_of(result, "pope")["DyVTE"]
    assert pope["over_fixed"]["value"] == pytest.approx(100 - 62.5) and pope["fixed_layer"] == "0"
    # on average it costs 2, where layer 1 has 75
    average = rows_of(result, "average")["DyVTE"]
    assert average["cost"] == 2 and average["over_fixed"]["value"] == pytest.approx(25)
    assert average["fixed_layer"] == "1" and average["gates_over"] is None


def test_gates_against_other_methods(folder, tmp_path):
    rows = rows_of(run(folder, tmp_path / "out"), "gqa")
    # gates score 100 from 2.5 to 4, FastV 25 at 3
    assert rows["FastV (k=2)"]["gates_over"]["value"] == pytest.approx(75)
    assert rows["FastV (k=2)"]["over_fixed"]["value"] == pytest.approx(25 - 87.5)
    assert rows["Pooling"]["gates_over"] is None, "every threshold costs more"
    assert rows["Pooling"]["fixed_layer"] is None and rows["Pooling"]["over_cheaper"] is None


def write_oracle(path, benchmark, count=QUESTIONS):
    labels = np.zeros((count, LAYERS), dtype=bool)
    labels[:10] = True
    labels[10:20, 1] = True
    kept = labels.copy()
    kept[20:30, 0] = True  # keeps the answer at layer 0, not at layer 1
    store = StudyWriter(path, "oracle", "settings")
    ids = np.array([str(i) for i in range(count)])
    store.append({"question_id": ids, "labels": labels, "kept": kept, "has_exit": np.ones(count, dtype=bool)})
    store.finish({"study": "oracle", "model": "tiny", "benchmark": benchmark, "num_layers": LAYERS})


def test_oracle_has_the_scores_of_the_baseline_at_its_own_cost(folder, tmp_path):
    for name in ("gqa", "pope"):
        write_oracle(tmp_path / "oracle" / name, name)
    places = [str(tmp_path / "oracle" / name) for name in ("gqa", "pope")]
    rows = rows_of(run(folder, tmp_path / "out", "--oracle", *places), "average")
    # ten questions at 1, ten at 2, twenty at 4
    assert rows[ORACLE]["score"] == 100 and rows[ORACLE]["cost"] == pytest.approx((10 + 20 + 80) / 40)
    assert rows[EARLIEST]["cost"] == pytest.approx((10 + 20 + 10 + 40) / 40)
    assert rows[ORACLE]["gates_over"] is None
    write_oracle(tmp_path / "part", "gqa", count=7)
    with pytest.raises(SystemExit, match="without --limit"):
        run(folder, tmp_path / "other", "--oracle", str(tmp_path / "part"))


def test_files_and_a_second_run(folder, tmp_path):
    run(folder, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(before) == ["dynamic.json", "dynamic.md", "dynamic.pdf", "dynamic.png"]
    text = before["dynamic.md"].decode()
    assert "GQA: DyVTE is above fixed exits of equal cost: +18.75 (" in text and "| Average" in text
    run(folder, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_does_not_belong_together_is_refused(folder, tmp_path):
    (folder / "gqa/fastv/scores.json").unlink()
    with pytest.raises(SystemExit, match="start the evaluation again"):
        run(folder, tmp_path / "out")
    scores = json.loads((folder / "gqa/none/scores.json").read_text())
    (folder / "gqa/fastv/scores.json").write_text(json.dumps(scores[1:]))
    with pytest.raises(SystemExit, match="other questions"):
        run(folder, tmp_path / "out")
    with pytest.raises(SystemExit, match="lacks the baseline or the fixed exits"):
        run(folder / "pope/dyvte", tmp_path / "out")


def test_answers_with_one_id_are_told_apart(folder):
    place = folder / "gqa/none"
    lines = [{"question_id": "x", "text": "a", "metadata": measured(cost, 4)} for cost in (1, 2)]
    (place / "merge.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "scores.json").write_text(json.dumps([{"question_id": "x", "score": s} for s in (0.0, 1.0)]))
    answered = read_answered(place / "record.json", ResultRecord.read(place / "record.json"))
    assert answered.scores.tolist() == [0, 100] and answered.costs.tolist() == [1, 2]

"""Records, tables, the verdict, and figures."""

import json
from dataclasses import asdict, replace

import matplotlib
import pytest

from dyvte import provenance
from dyvte.decoding.report import RunInfo
from dyvte.report import compare, figures, record, rivals_table, summary, table
from dyvte.report.record import AnsweredBy, ResultRecord


@pytest.fixture
def study(make_record):
    """Two benchmarks: baseline, two fixed exits, DyVTE."""
    records = []
    for name, best in (("gqa", 80.0), ("pope", 90.0)):
        for method, settings, score, decoder, layers, mean in (
            ("none", {}, best, 8.0, {"none": 10}, 4.0),
            ("fixed", {"exit_layer": "1"}, best - 20, 4.0, {"1": 10}, 1.0),
            ("fixed", {"exit_layer": "2"}, best - 0.5, 6.0, {"2": 10}, 2.0),
            ("dyvte", {"threshold": "0.5"}, best - 1, 5.0, {"1": 5, "2": 4, "none": 1}, 1.7),
        ):
            costs = {"decoder_tflops": decoder, "tflops": decoder + 2, "seconds": decoder / 10}
            records.append(
                make_record(
                    benchmark=name,
                    method=method,
                    settings=settings,
                    score=score,
                    exit_layers=layers,
                    mean_exit_layer=mean,
                    **costs,
                )
            )
    return records


def test_record_round_trip(tmp_path, make_record):
    run = RunInfo(dtype="float16", attention="sdpa", device="H100", versions={"torch": "2"})
    original = make_record(score=100 / 3, answered=(AnsweredBy(run, 10),))
    original.write(tmp_path / "deep/record.json")
    assert ResultRecord.read(tmp_path / "deep/record.json") == original
    assert record.read_records([tmp_path]) == [original]


def test_a_record_of_schema_1_is_read(tmp_path, make_record):
    """Its provenance was that of scoring; how the answers came about, it did not say."""
    made = make_record()
    content = asdict(made) | asdict(made.scoring) | {"schema": 1}
    del content["answered"], content["scoring"]
    (tmp_path / "record.json").write_text(json.dumps(content))
    read = ResultRecord.read(tmp_path / "record.json")
    assert read == made and read.answered == () and read.commit == "0" * 40
    read.write(tmp_path / "record.json")
    assert ResultRecord.read(tmp_path / "record.json") == made


@pytest.mark.parametrize("change", [{"schema": 99}, {"stranger": 1}, {"score": None}, {"scoring": {"x": 1}}])
def test_foreign_record_is_refused(tmp_path, make_record, change):
    content = {**asdict(make_record()), **change}
    if change.get("score", 0) is None:
        del content["score"]
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="record.json"):
        ResultRecord.read(tmp_path / "record.json")


def test_no_records(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no record.json"):
        record.read_records([tmp_path])


def metadata(exit_layer, tokens, tflops):
    return {
        "exit_layer": exit_layer,
        "tokens_per_layer": tokens,
        "tflops": tflops,
        "decoder_tflops": tflops / 2,
        "seconds": 0.25,
        "prompt_tokens": tokens[0],
        "visual_tokens": 6,
    }


def test_measurements_count_no_exit_as_the_number_of_layers():
    answers = [
        {"metadata": metadata(1, [10, 10, 4, 4], 2.0)},
        {"metadata": metadata(None, [10, 10, 10, 10], 4.0)},
        {"metadata": metadata(3, [12, 12, 12, 12], 3.0)},
    ]
    reports = record.reports_of(answers, "a.jsonl")
    found = record.measurements(reports, ["", "", ""])
    assert found["mean_exit_layer"] == pytest.approx((1 + 4 + 3) / 3)
    assert found["exit_layers"] == {"1": 1, "3": 1, "none": 1} and list(found["exit_layers"])[-1] == "none"
    assert (found["tflops"], found["decoder_tflops"], found["seconds"]) == (3.0, 1.5, 0.25)
    assert found["answered"] == ()
    with pytest.raises(ValueError, match="a.jsonl, metadata of 7 holds no measurements"):
        record.reports_of([*answers, {"question_id": 7, "metadata": {}}], "a.jsonl")
    with pytest.raises(ValueError, match="no seconds"):
        record.measurements([*reports, replace(reports[0], seconds=None)], [""] * 4)


def test_answers_that_differ_from_those_asked_alone_are_counted():
    content = metadata(1, [10, 10, 4, 4], 2.0)
    answers = [{"metadata": content | {"batch1_text": text}} for text in ("red", "blue", "")]
    reports = record.reports_of([*answers, {"metadata": content}], "a.jsonl")
    found = record.measurements(reports, ["red", "red", "", "x"])
    assert found["batch_check"] == {"checked": 3, "differ": 1}


@pytest.fixture
def gqa_answers(tmp_path, files):
    """Writes answers generated under these conditions and the arguments that score them."""
    files.json(
        tmp_path / "data/testdev_balanced_questions.json", {"1": {"answer": "red", "isBalanced": True}}
    )

    def write(*runs):
        rows = [
            {"question_id": "1", "text": "Red.", "metadata": metadata(1, [10, 10, 4, 4], 2.0) | {"run": run}}
            for run in runs
        ]
        files.lines(tmp_path / "llava_gqa_testdev_balanced.jsonl", [{"question_id": "1"}])
        answers = files.lines(tmp_path / "a.jsonl", rows)
        command = f"gqa --data-dir {tmp_path} --answers {answers} --output {tmp_path}/record.json --model m"
        return [*command.split(), "--method", "dyvte"]

    return write


def conditions(dtype, commit="a" * 40):
    return {
        "dtype": dtype,
        "attention": "sdpa",
        "device": "NVIDIA H100",
        "graphs": True,
        "model_sha256": "m0de1",
        "gates_sha256": "9a7e5",
        "commit": commit,
        "dirty": False,
        "versions": {"torch": "2.13.0"},
    }


def test_a_record_of_answers_of_two_precisions_says_so(gqa_answers, tmp_path, capsys):
    record.main(gqa_answers(conditions("float32"), conditions("bfloat16"), conditions("bfloat16")))
    made = ResultRecord.read(tmp_path / "record.json")
    assert [(by.run.dtype, by.answers) for by in made.answered] == [("bfloat16", 2), ("float32", 1)]
    assert made.answered[0].run == RunInfo(**conditions("bfloat16"))
    assert "under 2 different conditions" in capsys.readouterr().out


def test_scoring_elsewhere_does_not_change_the_provenance_of_answers(gqa_answers, tmp_path, monkeypatch):
    arguments = gqa_answers(conditions("float16"))
    record.main(arguments)
    here = ResultRecord.read(tmp_path / "record.json")
    monkeypatch.setattr(provenance, "git_state", lambda: ("b" * 40, True))
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "3.0"})
    monkeypatch.setattr(provenance, "hardware", lambda: {"cpu": "another", "cores": 1, "gpus": []})
    record.main(arguments)
    there = ResultRecord.read(tmp_path / "record.json")
    assert there.answered == here.answered and there.answered[0].run.device == "NVIDIA H100"
    assert there.commit == "a" * 40 and there.answered[0].run.versions == {"torch": "2.13.0"}
    assert (there.scoring.commit, there.scoring.dirty) == ("b" * 40, True) and there.scoring != here.scoring


def test_record_command_scores_and_hashes(tmp_path, files, capsys):
    files.json(
        tmp_path / "data/testdev_balanced_questions.json", {"1": {"answer": "red", "isBalanced": True}}
    )
    files.lines(tmp_path / "llava_gqa_testdev_balanced.jsonl", [{"question_id": "1"}])
    row = {"question_id": "1", "text": "Red.", "metadata": metadata(1, [10, 10, 4, 4], 2.0)}
    answers = files.lines(tmp_path / "a.jsonl", [row])
    out = tmp_path / "out/record.json"
    record.main(
        f"gqa --data-dir {tmp_path} --answers {answers} --output {out} --model m "
        f"--method dyvte --scores {tmp_path}/scores.json --setting threshold=0.5 gates= arguments=a=b".split()
    )
    made = ResultRecord.read(out)
    assert made.score == 100.0 and made.exit_layers == {"1": 1}
    assert made.settings == {"threshold": "0.5", "arguments": "a=b"}
    assert set(made.data_sha256) == {
        "data/testdev_balanced_questions.json",
        "llava_gqa_testdev_balanced.jsonl",
    }
    assert made.scoring.versions["torch"] and made.scoring.hardware["cores"] >= 1
    assert json.loads((tmp_path / "scores.json").read_text()) == [{"question_id": "1", "score": 1.0}]
    assert "GQA, dyvte: 100.00" in capsys.readouterr().out


def test_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert provenance.sha256_of([tmp_path / "empty"], tmp_path) == {"empty": digest}
    assert provenance.sha256_of([tmp_path / "empty"], tmp_path.parent) == {f"{tmp_path.name}/empty": digest}
    many = [tmp_path / f"{number}" for number in range(30)]
    for path in many:
        path.write_text(path.name)
    (together,) = provenance.sha256_of(many, tmp_path).items()
    assert together[0] == "30 files"
    many[7].write_text("changed")
    assert provenance.sha256_of(many, tmp_path)["30 files"] != together[1]


def test_git_state_outside_a_repository(tmp_path):
    assert provenance.git_state(tmp_path) == (None, None)


def test_markdown_table(study):
    text = table.text_of(compare.results_of(study), "markdown")
    lines = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text.splitlines()]
    assert len(lines) == 2 + 3 * 2
    assert lines[2][:3] == ["GQA", "Baseline", "80.00"]
    assert lines[3] == [
        "GQA", "DyVTE", "79.00 (-1.2%)", "7 (-30.0%)", "5 (-37.5%)", "1.70", "0.5 (-37.5%)",
    ]  # fmt: skip
    assert lines[-1][:3] == ["Average", "DyVTE", "84.00 (-1.2%)"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_fixed_rows_latex_and_csv(study):
    results = compare.results_of(study)
    labels = [row[1] for row in table.rows_of(results, with_fixed=True)[1:5]]
    assert labels == ["Baseline", "Exit after layer 1", "Exit after layer 2", "DyVTE"]
    latex = table.text_of(results, "latex")
    assert r"79.00 (-1.2\%)" in latex and latex.count(r"\midrule") == 3
    csv = table.text_of(results, "csv").splitlines()
    assert csv[2] == "gqa,dyvte,DyVTE,79.0,7.0,5.0,1.7,0.5" and len(csv) == 7


def test_small_models_are_shown_in_gflops(study, make_record):
    small = [make_record(tflops=0.002, decoder_tflops=0.001)]
    header, row = table.rows_of(compare.results_of(small))
    assert header[3] == "GFLOPs" and row[3:5] == ["2", "1"]


def test_one_model_and_one_record_each(study, make_record):
    with pytest.raises(ValueError, match="of one model"):
        compare.results_of([*study, make_record(model="other")])
    with pytest.raises(ValueError, match="two records of 'Baseline' on gqa"):
        compare.results_of([*study, make_record()])


def test_method_without_every_benchmark_has_no_average(study):
    results = compare.results_of(
        [entry for entry in study if not (entry.method == "dyvte" and entry.benchmark == "pope")]
    )
    assert compare.find(results, compare.AVERAGE, "dyvte") == []
    with pytest.raises(ValueError, match="every benchmark"):
        compare.verdict(results)


def test_verdict_compares_with_exits_of_same_or_lower_cost(study):
    """Layer 2 scores more than DyVTE but costs more; layer 1 costs less and scores less."""
    result = compare.verdict(compare.results_of(study))
    assert result.best_cheaper_exit is not None and result.best_cheaper_exit.label == "Exit after layer 1"
    assert result.kept_score == pytest.approx(84 / 85) and result.saved_compute == pytest.approx(0.375)
    sentence = compare.sentence_of(result)
    assert "keeps 98.8% of the baseline's average score and computes 37.5% fewer" in sentence
    assert "it is above the best fixed exit of the same or lower cost (exit after layer 1: 65.00)" in sentence


@pytest.mark.parametrize(
    "change, part",
    [
        (
            {"score": 60.0},
            "it is not above the best fixed exit of the same or lower cost (exit after layer 1",
        ),
        ({"decoder_tflops": 7.0}, "computes 12.5% fewer"),
        (
            {"tflops": 8.0},
            "it is not above the best fixed exit of the same or lower cost (exit after layer 2",
        ),
        ({"tflops": 5.0}, "no fixed exit layer costs as little"),
    ],
)
def test_the_verdict_states_facts(study, change, part):
    worse = [replace(entry, **change) if entry.method == "dyvte" else entry for entry in study]
    sentence = compare.sentence_of(compare.verdict(compare.results_of(worse)))
    assert part in sentence and "target" not in sentence


def test_points_have_no_part_in_an_average_of_percents(tmp_path, make_record, capsys):
    """MME 1500 -> 1490 must not hide GQA 62 -> 40."""
    scores = {
        ("mme", "none"): 1500.0,
        ("mme", "dyvte"): 1490.0,
        ("gqa", "none"): 62.0,
        ("gqa", "dyvte"): 40.0,
    }
    records = [make_record(benchmark=name, method=how, score=score) for (name, how), score in scores.items()]
    records += [replace(r, benchmark="pope", score=60.0) for r in records if r.benchmark == "gqa"]
    results = compare.results_of(records)
    averages = [r.score for r in results if r.benchmark == compare.AVERAGE]
    assert averages == [61.0, 50.0]
    verdict = compare.verdict(results)
    assert verdict.kept_score == pytest.approx(50 / 61)
    assert "82.0% of the baseline's average score without MME" in compare.sentence_of(verdict)
    assert "| Average without MME | DyVTE " in table.text_of(results, "markdown")
    located = [(tmp_path / f"{index}", made) for index, made in enumerate(records)]
    rivals = rivals_table.table_of(located)
    assert (
        rivals.texts()[2][-4] == "50.0" and "Average without MME: only scores in percent" in rivals.markdown()
    )
    figure = figures.tradeoff(records)
    assert figure.axes[0].get_ylabel() == "average score without MME"


def test_an_average_of_one_percent_benchmark_is_left_out(make_record):
    two = compare.results_of([make_record(), make_record(benchmark="mme", score=1500.0)])
    assert "Average" not in table.text_of(two, "markdown")
    assert compare.find(two, compare.AVERAGE, "none")[0].score == 80.0, "but the verdict can be had from it"
    points = compare.results_of([make_record(benchmark="mme", score=1500.0)])
    assert compare.find(points, compare.AVERAGE, "none")[0].score == 1500.0


def test_two_benchmarks_of_which_no_method_has_both(make_record):
    results = compare.results_of([make_record(), make_record(benchmark="pope", method="dyvte")])
    assert [row[:2] for row in table.rows_of(results)[1:]] == [
        ["GQA", "Baseline"],
        ["POPE", "DyVTE"],
    ]


def test_exit_shares(study):
    dyvte = next(entry for entry in study if entry.method == "dyvte")
    assert figures.exit_shares(dyvte) == [0.0, 50.0, 40.0, 0.0, 10.0]


def test_figures_are_drawn(tmp_path, study):
    matplotlib.use("Agg")
    for index, entry in enumerate(study):
        entry.write(tmp_path / str(index) / "record.json")
    for name in ("exits", "tradeoff"):
        figures.main([name, str(tmp_path), "--out", str(tmp_path / f"{name}.png")])
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="METHOD=dyvte"):
        figures.exit_histograms([study[0]])


def test_summary_writes_and_says_everything(tmp_path, study, capsys):
    matplotlib.use("Agg")
    for index, entry in enumerate(study):
        entry.write(tmp_path / "runs" / str(index) / "record.json")
    summary.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--setting", "seed=7"])
    shown = capsys.readouterr().out
    assert "84.00 (-1.2%)" in shown and "DyVTE keeps 98.8%" in shown and "exits.png" in shown
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.md", "table.tex", "table.csv", "exits.png", "tradeoff.png", "results.json"}
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert content["verdict"]["kept_score"] == pytest.approx(84 / 85) and content["settings"] == {"seed": "7"}
    assert len(content["records"]) == len(study) and content["records"][0]["scoring"]["commit"] == "0" * 40

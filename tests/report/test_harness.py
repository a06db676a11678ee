"""Records of lmms-eval's results, from files that lmms-eval 0.7.3 wrote for four made-up questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dyvte.report import harness, table
from dyvte.report.record import find_records, read_records
from dyvte.report.titles import LMMS, average_title, averaged, lmms_factor, title_of

WRITTEN = Path(__file__).parents[1] / "plugins/lmms"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Two runs, with and without exit: their results files, and the reports where they were asked to be."""
    shutil.copytree(WRITTEN, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def edit(path: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def file_of(results: Path, method: str) -> Path:
    (found,) = [p for p in results.rglob("*_results.json") if f"reports=results/{method}" in p.read_text()]
    return found


def test_a_run_enters_the_table(results, capsys):
    harness.main([str(results)])
    assert capsys.readouterr().out.count("record.json: 25.00 (exact_match, in percent, 4 questions)") == 2
    table.main([str(results)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[2:]] == [
        ["made_up, exact_match (lmms-eval)", "Baseline"],
        ["made_up, exact_match (lmms-eval)", "DyVTE"],
    ]
    assert rows[2][2] == "25.00" and rows[3][2] == "25.00 (+0.0%)" and rows[2][5] == "20.00"
    harness.main([str(results)])
    assert len(find_records([results])) == 2, "a second time writes the same files"


def test_what_a_record_holds(results):
    record = harness.records_of(file_of(results, "dyvte"))["made_up"]
    lines = [json.loads(line) for line in (results / "dyvte.0.jsonl").read_text().splitlines()]
    reports = [line["metadata"] for line in lines[1:]]
    assert record.benchmark == f"{LMMS}made_up/exact_match" and record.method == "dyvte"
    assert record.model == "playground/tiny/model" and record.parts == {"exact_match,none": 0.25}
    assert record.num_samples == 4 and record.num_layers == 20
    assert record.tflops == pytest.approx(sum(r["tflops"] for r in reports) / 4)
    assert record.seconds == pytest.approx(sum(r["seconds"] for r in reports) / 4)
    assert record.settings == {
        "gates": "playground/tiny/gates",
        "threshold": "0.5",
        "batch_size": "4",
        "conv_mode": "vicuna_v1_nosys",
        "harness": "lmms-eval 0.7.3",
        "harness_class": "DyvteChat (chat)",
        "task_version": "0.0",
    }
    assert record.answered[0].answers == 4 and record.answered[0].run.gates_sha256
    assert len(record.data_sha256["documents"]) == 64
    assert "--batch_size 4 --model_args pretrained=playground/tiny/model,method=dyvte" in record.command
    assert record.scoring.created == lines[0]["created"] and record.scoring.versions == {"lmms_eval": "0.7.3"}


def test_several_processes_and_answers_that_fill_up_are_one_run(results):
    """Under torchrun each process has a file, and lmms-eval repeats requests so that all have equally many."""
    whole = harness.records_of(file_of(results, "dyvte"))["made_up"]
    run, *answers = (results / "dyvte.0.jsonl").read_text().splitlines(keepends=True)
    later = json.dumps(json.loads(run) | {"created": "2027-01-01T00:00:00+00:00"}) + "\n"
    (results / "dyvte.0.jsonl").write_text(run + "".join(answers[:2]))
    (results / "dyvte.1.jsonl").write_text(later + "".join(answers[2:]) + answers[2])
    assert harness.records_of(file_of(results, "dyvte"))["made_up"].exit_layers == whole.exit_layers
    other = json.dumps(json.loads(run) | {"method": "none"}) + "\n"
    (results / "dyvte.1.jsonl").write_text(other + "".join(answers[2:]))
    with pytest.raises(ValueError, match="dyvte.*jsonl are of several runs"):
        harness.records_of(file_of(results, "dyvte"))


def test_files_that_do_not_match_are_refused(results, capsys):
    path = file_of(results, "dyvte")
    lines = (results / "dyvte.0.jsonl").read_text().splitlines(keepends=True)
    (results / "dyvte.0.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(
        SystemExit, match="task made_up: 3 reports for 4 questions; the reports are of another"
    ):
        harness.main([str(path)])
    edit(path, lambda content: content["config"].update(limit=3))
    assert harness.records_of(path)["made_up"].num_samples == 3
    (results / "dyvte.0.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="dyvte.0.jsonl, line 1 lacks model, method, settings, created"):
        harness.records_of(path)
    (results / "dyvte.0.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no results/dyvte.\*.jsonl.*--reports"):
        harness.records_of(path)
    edit(path, lambda content: content["config"].update(model_args="pretrained=m"))
    with pytest.raises(ValueError, match="the run wrote no reports; give reports=PREFIX"):
        harness.records_of(path)
    assert harness.records_of(path, "results/none")["made_up"].method == "none"
    with pytest.raises(ValueError, match="lacks configs.*no results file of lmms-eval"):
        harness.records_of(edit(path, lambda content: content.pop("configs")))
    (results / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"empty holds no \*_results.json: run lmms-eval with --output_path"):
        harness.main([str(results / "empty")])


def test_the_score_is_the_metric_asked_for(results):
    def change(content):
        content["results"]["made_up"] |= {"points,none": 1400.0, "exact_match,strict": 0.5}

    path = edit(file_of(results, "none"), change)
    record = harness.records_of(path, metrics=["points"])["made_up"]
    assert (record.benchmark, record.score) == (f"{LMMS}made_up/points", 1400.0)
    assert record.metric == "points, as lmms-eval gives it"
    assert set(record.parts) == {"exact_match,none", "exact_match,strict", "points,none"}
    edit(path, lambda content: content["results"]["made_up"].clear())
    with pytest.raises(ValueError, match="task made_up: it has no score; there are none"):
        harness.records_of(path)


def test_which_scores_are_in_percent():
    names = [
        f"{LMMS}{name}" for name in ("pope/pope_accuracy", "mme/mme_perception_score", "gqa/exact_match")
    ]
    assert [lmms_factor(name) for name in names] == [100, None, 100]
    assert lmms_factor(f"{LMMS}mmbench_en_dev/gpt_eval_score") == 1
    assert averaged([*names, "gqa", "mme"]) == [names[0], names[2], "gqa"]
    assert average_title(names) == "Average without mme, mme_perception_score (lmms-eval)"
    assert title_of(names[0]) == "pope, pope_accuracy (lmms-eval)" and title_of("pope") == "POPE"


def test_records_of_the_harness_and_of_scripts_are_not_compared(results, make_record, tmp_path, capsys):
    harness.main([str(results)])
    make_record(model="playground/tiny/model", settings={}).write(tmp_path / "own/record.json")
    assert len(read_records([tmp_path])) == 3
    capsys.readouterr()
    table.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "GQA" in out and "made_up, exact_match (lmms-eval)" in out

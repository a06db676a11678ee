"""The model card that is saved with gates."""

import dataclasses
import json

import pytest
from huggingface_hub import ModelCard

from dyvte import ExitGates
from dyvte.decoding.report import RunInfo
from dyvte.gates.card import BEGIN, TAGS
from dyvte.gates.files import gates_digest
from dyvte.gates.origin import Origin, TrainedOn
from dyvte.report.record import AnsweredBy, ResultRecord

CALIBRATION = {
    "threshold": 0.42,
    "changed": 0.012,
    "cost": 2.1,
    "full_cost": 3.8,
    "unit": "TFLOPs",
    "samples": 500,
}


@pytest.fixture
def gates():
    made = ExitGates(3, 32, width=8)
    made.origin = Origin("lab/llava-tiny", "ab" * 32, "llava_llama", TrainedOn("cd" * 32, 6652))
    made.calibration = {**CALIBRATION, "target": "at most 2.00% of answers change"}
    return made


def run_of(digest):
    return AnsweredBy(RunInfo(dtype="float16", attention="sdpa", device="H100", gates_sha256=digest), 10)


def test_card_tells_what_the_gates_are(gates, tmp_path):
    gates.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("lab/llava-tiny", "adapter")
    assert (data["library_name"], data["pipeline_tag"], data["tags"]) == ("dyvte", "image-text-to-text", TAGS)
    assert data["exit_gates"] == {
        "states": ["mean_text", "last_text"],
        "threshold": 0.42,
        "calibration": "at most 2.00% of answers change",
        "base_sha256": "ab" * 32,
    }
    for told in (
        "https://arxiv.org/abs/2411.19628",
        "| Base model | lab/llava-tiny |",
        "| States they read | mean_text, last_text |",
        "| 0.42 (calibrated: at most 2.00% of answers change; changed 0.012, cost 2.1, full_cost 3.8, unit TFLOPs, "
        "samples 500) |",
        "6652 samples, SHA-256 cdcd",
    ):
        assert told in card.text


def test_base_models_that_the_hub_does_not_know_are_in_the_text_alone(gates, tmp_path):
    gates.origin = dataclasses.replace(gates.origin, base_model="my | model <!--")
    gates.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None and "| Base model | my \\| model &lt;!-- |" in card.text


def test_what_a_person_wrote_stays(gates, tmp_path):
    gates.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    written = path.read_text()
    path.write_text(
        written.replace("library_name:", "license: mit\nlibrary_name:").replace(BEGIN, f"Before.\n{BEGIN}")
        + "After."
    )
    gates.calibration = {}
    gates.save_pretrained(tmp_path)
    told = path.read_text()
    assert "\nlicense: mit\n" in told and "\nBefore.\n<!--" in told and told.endswith("After.")
    assert "not calibrated" in told and "0.42" not in told
    gates.save_pretrained(tmp_path)
    assert path.read_text() == told


@pytest.mark.parametrize(
    "text", ["# Mine\n", "---\nlicense: mit\n---\n# Mine\n", "---\na: [\n---\n", f"x\n{BEGIN}\n"]
)
def test_other_readmes_stay_whole(gates, tmp_path, text, caplog):
    (tmp_path / "README.md").write_text(text)
    gates.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    assert "README.md stays as it is" in caplog.text
    assert ExitGates.from_pretrained(tmp_path).threshold == 0.42


def test_a_readme_of_metadata_alone_is_filled_and_a_models_folder_gets_none(gates, tmp_path):
    """The hub makes the first where a person chooses a license; gates may lie in a checkpoint's folder."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    gates.save_pretrained(tmp_path)
    assert (
        "license: mit" in (tmp_path / "README.md").read_text()
        and BEGIN in (tmp_path / "README.md").read_text()
    )
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    gates.save_pretrained(model)
    assert not (model / "README.md").exists()


def test_a_card_changes_no_digest(gates, tmp_path):
    gates.save_pretrained(tmp_path)
    digest = gates_digest(tmp_path)
    (tmp_path / "README.md").write_text("other")
    assert gates_digest(tmp_path) == digest


def test_scores_come_with_their_provenance(gates, tmp_path, make_record):
    gates.save_pretrained(tmp_path)
    digest = gates_digest(tmp_path)
    settings = {"threshold": "0.5", "gates": "/home/me/gates", "arguments": "--x /home/me"}
    with_exit = make_record(method="dyvte", score=79.5, mean_exit_layer=1.5, answered=(run_of(digest),))
    with_exit = dataclasses.replace(with_exit, settings=settings)
    with_exit.write(tmp_path / "record.json")
    records = [make_record(answered=(run_of(None),)), ResultRecord.read(tmp_path / "record.json")]
    gates.save_pretrained(tmp_path, records=records)
    card = ModelCard.load(tmp_path / "README.md")
    assert (
        "| gqa | accuracy | 79.50 | dyvte threshold=0.5 | 10 | 1.50 of 4 | 8 | float16, sdpa, H100; commit 0000"
        in card.text
    )
    scores = card.data.eval_results
    assert [(score.dataset_type, score.metric_value) for score in scores] == [("gqa", 80.0), ("gqa", 79.5)]
    assert scores[1].metric_args["gates_sha256"] == digest
    assert scores[1].metric_args["data_sha256"] == {"questions.json": "00"}
    assert json.dumps(scores[1].metric_args["settings"]) == '{"threshold": "0.5"}'
    assert "/home/me" not in (tmp_path / "README.md").read_text()
    gates.save_pretrained(tmp_path)  # scores of what is no longer saved do not stay
    assert "79.5" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("digest", ["ef" * 32, None])
def test_records_of_other_gates_are_refused(gates, tmp_path, make_record, digest):
    record = make_record(method="dyvte+fastv", answered=(run_of(digest),))
    with pytest.raises(ValueError, match="record of gqa with tiny is of other gates"):
        gates.save_pretrained(tmp_path, records=[record])

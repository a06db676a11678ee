"""The studies from command line to figure, on a small random model."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from dyvte.decoding.policy import FixedExit, NoExit
from dyvte.engine.options import open_answerer
from dyvte.study import attention, examples, fixed_exits, oracle, plot, run
from dyvte.study.attention import AttentionStudy
from dyvte.study.oracle import OracleStudy
from tests.fixtures.checkpoints import SIZES
from tests.study.conftest import BATCH, QUESTIONS

LAYERS = SIZES["num_hidden_layers"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def forbid_loading(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(run, "open_answerer", refuse)


@pytest.fixture(scope="session")
def originals(flags, gate_folder, tmp_path_factory):
    """Folders of the attention without exit and with gates."""
    folder = tmp_path_factory.mktemp("attention")
    attention.main([*flags, "--output", str(folder / "none"), "--method", "none"])
    attention.main([*flags, "--output", str(folder / "dyvte"), "--gates", str(gate_folder)])
    return folder


@pytest.fixture
def studied(originals, tmp_path):
    """Copies of these that a test may change."""
    return tuple(shutil.copytree(originals / name, tmp_path / name) for name in ("none", "dyvte"))


def test_attention_without_and_with_gates(studied, flags, monkeypatch, capsys):
    without, with_gates = (AttentionStudy.read(folder) for folder in studied)
    assert without.count.tolist() == [[QUESTIONS] * LAYERS] * 3
    assert (without.exit_layers == -1).all() and without.manifest["method"] == "none"
    assert without.manifest["samples"] == QUESTIONS and "causal softmax" in without.manifest["definitions"]
    mass = [without.curve("mass", kind)[0] for kind in ("cross", "text_self")]
    np.testing.assert_allclose(mass[0] + mass[1], 1, atol=1e-5)
    assert (with_gates.manifest["method"], with_gates.manifest["threshold"]) == ("dyvte", "0.5")
    there = [
        int(((with_gates.exit_layers < 0) | (with_gates.exit_layers >= layer)).sum())
        for layer in range(LAYERS)
    ]
    assert with_gates.count[1].tolist() == there and there[-1] < there[0], "the image leaves some questions"
    assert with_gates.count[2].tolist() == [QUESTIONS] * LAYERS
    # a second run loads no model and changes nothing
    before = contents(studied[0])
    forbid_loading(monkeypatch)
    attention.main([*flags, "--output", str(studied[0]), "--method", "none"])
    assert contents(studied[0]) == before and sorted(before) == ["attention.json", "attention.npz"]
    assert f"{QUESTIONS} questions" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(studied, flags, tmp_path, monkeypatch):
    real, asked = attention.prefill_statistics, []

    def interrupted(answerer, batch):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(batch))
        return real(answerer, batch)

    arguments = [*flags, "--output", str(tmp_path / "again"), "--method", "none"]
    monkeypatch.setattr(attention, "prefill_statistics", interrupted)
    with pytest.raises(SystemExit):
        attention.main(arguments)
    with pytest.raises(FileNotFoundError, match="when it ends"):
        AttentionStudy.read(tmp_path / "again")

    def counted(answerer, batch):
        asked.append(len(batch))
        return real(answerer, batch)

    monkeypatch.setattr(attention, "prefill_statistics", counted)
    attention.main(arguments)
    assert asked == [BATCH, BATCH, QUESTIONS - 2 * BATCH], "what was there is not measured again"
    whole, joined = (dict(np.load(tmp_path / name / "attention.npz")) for name in ("none", "again"))
    assert whole.keys() == joined.keys()
    for key in whole:
        np.testing.assert_array_equal(whole[key], joined[key])


def test_other_settings_start_anew(studied, flags):
    attention.main(
        [*flags, "--output", str(studied[0]), "--method", "fixed", "--exit-layer", "0", "--limit", "3"]
    )
    study = AttentionStudy.read(studied[0])
    assert study.manifest["samples"] == 3 and study.manifest["exit_layer"] == "0"
    assert study.count[1].tolist() == [3, 0, 0] and study.stages is None


@pytest.mark.parametrize("kind", ["attention", "entropy"])
def test_figures_come_from_stored_numbers_alone(studied, kind, tmp_path):
    moved = [shutil.copytree(folder, tmp_path / "moved" / folder.name) for folder in studied]
    for name, folders in (("first", studied), ("second", moved)):
        plot.main([kind, *map(str, folders), "--out", str(tmp_path / name / "figure")])
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert first == second and sorted(first) == ["figure.pdf", "figure.png"]
    numbers = dict(np.load(moved[0] / "attention.npz"))
    numbers["mean"][:, :, :, 1] *= 0.5
    np.savez(moved[0] / "attention.npz", **numbers)
    plot.main([kind, *map(str, moved), "--out", str(tmp_path / "other" / "figure.png")])
    assert contents(tmp_path / "other")["figure.png"] != first["figure.png"], "the figure shows the numbers"


def test_an_oracle_exit_keeps_the_generated_answer(flags, checkpoint, gqa, tmp_path, monkeypatch):  # noqa: F811
    oracle.main([*flags, "--output", str(tmp_path)])
    study = OracleStudy.read(tmp_path)
    assert study.labels.shape == (QUESTIONS, LAYERS) and study.has_exit.all()
    assert len(set(study.exit_layers.tolist())) > 1, "exits must differ for this to say anything"
    args = Namespace(
        model_path=str(checkpoint), model_base=None, method="none", device="cpu", max_new_tokens=6
    )
    answerer = open_answerer(args, "vicuna_v1")
    from dyvte.engine.questions import item_of, prepare, read_lines

    rows = read_lines(str(gqa / "llava_gqa_testdev_balanced.jsonl"))
    changed = 0
    for index, (place, row) in enumerate(rows):
        question = prepare(item_of(row, place), str(gqa / "data/images"))
        answerer.handle.policy = NoExit()
        (plain,) = answerer.ask([question])
        for layer in range(LAYERS):
            answerer.handle.policy = FixedExit(layer)
            (early,) = answerer.ask([question])
            if study.kept[index, layer]:
                assert early.text == plain.text
            changed += early.text != plain.text
    assert changed, "some exit must change some answer for this to say anything"
    before = contents(tmp_path)
    forbid_loading(monkeypatch)
    oracle.main([*flags, "--output", str(tmp_path)])
    assert contents(tmp_path) == before


def test_manual_exit(flags, tmp_path, capsys):
    fixed_exits.main([*flags, "--output", str(tmp_path / "records")])
    oracle.main([*flags, "--output", str(tmp_path / "oracle")])
    for name in ("first", "second"):
        plot.main(
            [
                "manual",
                str(tmp_path / "records"),
                "--oracle",
                str(tmp_path / "oracle"),
                "--out",
                str(tmp_path / name / "f"),
            ]
        )
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    plot.main(["manual", str(tmp_path / "records"), "--out", str(tmp_path / "third" / "f.png")])
    assert contents(tmp_path / "third")["f.png"] != contents(tmp_path / "first")["f.png"]


def test_examples_page(flags, gate_folder, tmp_path, monkeypatch):
    arguments = [
        *flags,
        "--output",
        str(tmp_path),
        "--gates",
        str(gate_folder),
        "--limit",
        "3",
        "--rounds",
        "1",
    ]
    examples.main(arguments)
    study = json.loads((tmp_path / "examples.json").read_text())
    assert len(study["examples"]) == 3
    for example in study["examples"]:
        assert example["answers"]["without"]["exit_layer"] is None
        for answer in example["answers"].values():
            assert 1 <= answer["tokens"] <= 6
            assert answer["tokens_per_second"] == pytest.approx(answer["tokens"] / answer["seconds"])
    assert any(e["answers"]["with"]["exit_layer"] is not None for e in study["examples"])
    forbid_loading(monkeypatch)
    examples.main(arguments)  # kept
    # what people and models write is shown as text, never as markup
    study["examples"][0]["answers"]["with"]["text"] = "<b>red</b>"
    (tmp_path / "examples.json").write_text(json.dumps(study))
    for name in ("a.html", "b"):
        plot.main(["examples", str(tmp_path), "--out", str(tmp_path / "page" / name)])
    page = (tmp_path / "page/a.html").read_text()
    assert page == (tmp_path / "page/b.html").read_text()
    assert "&lt;b&gt;red" in page and "<b>red" not in page and 'class="differs"' in page
    assert page.count("data:image/png;base64,") == 3 and "http:" not in page and "https:" not in page, (
        "the page needs no other file"
    )


def test_examples_need_an_exit(flags, tmp_path):
    with pytest.raises(SystemExit, match="pass --gates"):
        examples.main([*flags, "--output", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["attention", "nowhere"], r"nowhere/attention.npz not found; python -m dyvte.study.attention"),
        (["manual", "nowhere.json"], "nowhere.json"),
        (["examples", "nowhere"], "examples"),
        (["examples", "one", "two"], "one study"),
    ],
)
def test_what_is_missing_is_told(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(SystemExit, match=message):
        plot.main([*arguments, "--out", "figure.png"])
    assert not (tmp_path / "figure.png").exists()


def test_a_file_of_another_study_is_refused(studied, tmp_path):
    for ending in (".npz", ".json"):
        shutil.copy(studied[0] / f"attention{ending}", tmp_path / f"oracle{ending}")
    with pytest.raises(ValueError, match="not of python -m dyvte.study.oracle"):
        OracleStudy.read(tmp_path)


def test_gates_that_lie_in_the_checkpoint_are_named(flags, checkpoint, gate_folder, tmp_path):  # noqa: F811
    """Without a word about the method, a checkpoint's own gates are used, and the manifest says so."""
    model = shutil.copytree(checkpoint, tmp_path / "model-with-gates")
    for file in gate_folder.iterdir():
        shutil.copy(file, model)
    arguments = [str(model) if flag == str(checkpoint) else flag for flag in flags]
    attention.main([*arguments, "--output", str(tmp_path / "out"), "--limit", "2"])
    manifest = AttentionStudy.read(tmp_path / "out").manifest
    assert (manifest["method"], manifest["gates"], manifest["dtype"]) == ("dyvte", str(model), "float32")

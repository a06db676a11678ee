"""Gate training through the command line's entry: what it changes, writes, logs, and resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dyvte import ExitGates
from dyvte.engine.model import ModelOptions
from dyvte.engine.openers import open_model
from dyvte.gates.origin import TrainedOn
from dyvte.gates.training import step_layer
from dyvte.provenance import checkpoint_digest
from llava.train.train import train

REPOSITORY = Path(__file__).parents[2]
"""Where the subprocesses run."""


def gate_flags(model, data, output, *more: str) -> list[str]:
    path, images = data
    return [
        "--tune_visual_gates", "True", "--model_name_or_path", str(model), "--version", "v1",
        "--data_path", str(path), "--image_folder", str(images), "--image_aspect_ratio", "pad",
        "--output_dir", str(output), "--model_max_length", "256", "--num_train_epochs", "1",
        "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--lr_scheduler_type", "cosine",
        "--warmup_ratio", "0.03", "--weight_decay", "0", "--logging_steps", "2", "--report_to", "none",
        "--save_strategy", "steps", "--save_steps", "2", "--use_cpu", "True", *more,
    ]  # fmt: skip


def launch(arguments: list[str], processes: int = 1) -> subprocess.Popen:
    launcher = ["-m", "llava.train.train"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *launcher]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(arguments: list[str], processes: int = 1) -> str:
    process = launch(arguments, processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def finished(llava_model, instruction_data, tmp_path_factory) -> Path:
    """One uninterrupted gate training in this process."""
    output = tmp_path_factory.mktemp("gates") / "whole"
    train(argv=gate_flags(llava_model, instruction_data, output))
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "gates.safetensors")


def assert_same(first: Path, second: Path, tolerance: float = 0.0) -> None:
    left, right = weights(first), weights(second)
    assert set(left) == set(right) and left
    for key, value in left.items():
        torch.testing.assert_close(
            right[key], value, rtol=0, atol=tolerance, msg=lambda text, key=key: key + text
        )


def test_only_gates_are_written(finished):
    names = {path.name for path in finished.iterdir() if path.is_file()}
    assert names == {"gates.safetensors", "gates.json", "README.md", "trainer_state.json", ".lock"}
    checkpoint = {path.name for path in (finished / "checkpoint-8").iterdir()}
    assert checkpoint == {
        "gates.safetensors", "gates.json", "README.md", "optimizer.pt", "scheduler.pt",
        "rng_state.pth", "trainer_state.json", "run.json",
    }  # fmt: skip


def test_every_gate_moved(finished, llava_model):
    torch.manual_seed(42)  # the Trainer's default seed
    fresh = ExitGates(4, 32).state_dict()
    trained = weights(finished)
    assert set(fresh) == set(trained)
    assert all(not torch.equal(fresh[key], trained[key]) for key in fresh)


def test_logs_label_rate_and_accuracy_by_layer(finished):
    history = json.loads((finished / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    assert len(logged) == 4
    for entry in logged:
        for name in ("label_rate", "accuracy"):
            layers = [entry[f"gates/{name}/layer_{layer:02d}"] for layer in range(4)]
            assert all(0 <= value <= 1 for value in layers)
            assert entry[f"gates/{name}"] == pytest.approx(sum(layers) / 4)


def test_killed_run_resumes_to_the_same_gates(finished, llava_model, instruction_data, tmp_path):
    arguments = gate_flags(llava_model, instruction_data, tmp_path / "killed")
    process = launch(arguments)
    deadline = time.time() + 300
    while not (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if (tmp_path / "killed" / "gates.safetensors").exists():
        pytest.skip("the run ended before it could be killed")
    output = run(arguments)
    assert "resuming from" in output
    assert_same(finished, tmp_path / "killed")


@pytest.mark.parametrize(
    ("flag", "value", "name"),
    [
        ("--learning_rate", "1e-5", "learning_rate: it has 0.001, this run has 1e-05"),
        ("--seed", "7", "seed"),  # of fresh gates as well
        ("--gate_alpha", "1.5", "gate_alpha: it has 1.03, this run has 1.5"),
        ("--per_device_train_batch_size", "8", "global_batch: it has 4, this run has 8"),
        ("--model_max_length", "128", "model_max_length"),
        ("--data_path", "other", "data"),
        ("--model_name_or_path", "other", "model"),
        ("--visual_gates", "other", "start"),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    flag, value, name, finished, llava_model, instruction_data, tmp_path
):
    """What was trained with other data or settings is not taken for the result of this run."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    if flag == "--data_path":
        value = str(tmp_path / "other.json")
        Path(value).write_text(instruction_data[0].read_text().replace("red", "blue"))
    elif flag == "--model_name_or_path":
        value = str(tmp_path / "other")
        shutil.copytree(llava_model, value)
        config = json.loads((llava_model / "config.json").read_text())
        (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    elif flag == "--visual_gates":
        value = str(tmp_path / "gates")
        torch.manual_seed(5)
        ExitGates(4, 32).save_pretrained(value)
    with pytest.raises(ValueError, match=f"checkpoint-8 is of a run with another {name}"):
        train(argv=gate_flags(llava_model, instruction_data, output, flag, value))


def test_same_run_on_other_devices_goes_on(finished, llava_model, instruction_data, tmp_path):
    """How a step's samples are split, and how it is logged and saved, is no other run."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    more = (
        "--per_device_train_batch_size",
        "2",
        "--gradient_accumulation_steps",
        "2",
        "--logging_steps",
        "1",
    )
    train(argv=gate_flags(llava_model, instruction_data, output, *more, "--save_steps", "1"))
    assert_same(finished, output)


def test_checkpoint_of_an_unknown_run_is_refused(finished, llava_model, instruction_data, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    (output / "checkpoint-8" / "run.json").unlink()
    with pytest.raises(ValueError, match="does not say of which run it is"):
        train(argv=gate_flags(llava_model, instruction_data, output))


def test_where_a_run_resumes_from_can_be_asked_for(finished, llava_model, instruction_data, tmp_path):
    output, ask = tmp_path / "out", "--resume_from_checkpoint"
    with pytest.raises(ValueError, match="out holds no complete checkpoint"):
        train(argv=gate_flags(llava_model, instruction_data, output, ask, "True"))
    with pytest.raises(ValueError, match="nowhere is not the folder of a complete checkpoint"):
        train(argv=gate_flags(llava_model, instruction_data, output, ask, "nowhere"))
    from_four = (ask, str(finished / "checkpoint-4"))
    train(argv=gate_flags(llava_model, instruction_data, output, *from_four))
    assert_same(finished, output)
    assert not (output / "checkpoint-2").exists()
    train(argv=gate_flags(llava_model, instruction_data, output, ask, "True"))
    assert_same(finished, output)
    train(argv=gate_flags(llava_model, instruction_data, output, ask, "False"))
    assert_same(finished, output)
    assert (output / "checkpoint-2").exists()


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_two_processes_train_the_same_gates(engine, llava_model, instruction_data, tmp_path):
    """Text-only samples fall unevenly on the processes, and still the gradient is that of one process."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    more = ("--group_by_modality_length", "True", "--save_strategy", "no")
    train(argv=gate_flags(llava_model, instruction_data, alone, *more, "--per_device_train_batch_size", "8"))
    if engine == "zero2":
        more += ("--deepspeed", str(REPOSITORY / "scripts" / "zero2.json"))
    run(gate_flags(llava_model, instruction_data, together, *more), processes=2)
    assert_same(alone, together, tolerance=2e-5)


def test_accumulated_batches_train_the_same_gates(llava_model, instruction_data, tmp_path):
    more = ("--save_strategy", "no", "--group_by_modality_length", "True", "--seed", "1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(argv=gate_flags(llava_model, instruction_data, whole, *more, "--per_device_train_batch_size", "8"))
    train(argv=gate_flags(llava_model, instruction_data, parts, *more, "--gradient_accumulation_steps", "2"))
    assert len(weights(whole)) == 8
    left, right = weights(whole), weights(parts)
    assert max(float((left[key] - right[key]).abs().max()) for key in left) < 1e-4


def test_samples_without_labels_do_not_shrink_the_loss(llava_model, instruction_data, tmp_path):
    """Answers that the splice cuts off give no labels: the loss is a mean over the other samples, however split."""
    path, images = instruction_data
    model = tmp_path / "llava-short"
    shutil.copytree(llava_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tokenizer_model_max_length": 100}))
    usable = [record for record in json.loads(path.read_text()) if "image" in record][:5]
    cut = json.loads(json.dumps(usable[:3]))
    for record in cut:
        record["conversations"][0]["value"] += " What colour is the ball?" * 10
    losses = {}
    for name, records, more in (
        ("usable", usable, ("--per_device_train_batch_size", "8")),
        ("all", usable + cut, ("--per_device_train_batch_size", "8")),
        ("parts", usable + cut, ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4")),
    ):
        data = tmp_path / f"{name}.json"
        data.write_text(json.dumps(records))
        more += ("--save_strategy", "no", "--max_steps", "1", "--logging_steps", "1")
        train(argv=gate_flags(model, (data, images), tmp_path / name, *more))
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        losses[name] = history[0]["loss"]
    assert losses["all"] == pytest.approx(losses["usable"], rel=1e-4)
    assert losses["parts"] == pytest.approx(losses["usable"], rel=1e-4)


def test_random_layers_depend_on_seed_and_step_alone(llava_model, instruction_data, tmp_path):
    layers = [step_layer(7, step, 4) for step in range(64)]
    assert set(layers) == {0, 1, 2, 3}
    assert layers == [step_layer(7, step, 4) for step in range(64)]
    assert layers != [step_layer(8, step, 4) for step in range(64)]
    output = tmp_path / "random"
    more = ("--gate_supervision", "random", "--seed", "7", "--save_strategy", "no", "--logging_steps", "1")
    train(argv=gate_flags(llava_model, instruction_data, output, *more))
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logged = [key for entry in history for key in entry if key.startswith("gates/accuracy/")]
    assert logged == [f"gates/accuracy/layer_{layer:02d}" for layer in layers[:8]]


def test_gates_of_another_depth_are_refused(llava_model, instruction_data, tmp_path):
    ExitGates(5, 32, width=8).save_pretrained(tmp_path / "other")
    more = ("--visual_gates", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="5 layers.*4"):
        train(argv=gate_flags(llava_model, instruction_data, tmp_path / "out", *more))


def test_a_model_that_lacks_weights_is_not_trained_on(llava_model, instruction_data, tmp_path):
    shutil.copytree(llava_model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    lacking = {key: value for key, value in weights.items() if "layers.2.mlp.up_proj" not in key}
    save_file(lacking, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of the model's weights: model.layers.2.mlp.up_proj.weight"):
        train(argv=gate_flags(tmp_path / "model", instruction_data, tmp_path / "out"))


def test_gates_know_their_model_and_are_refused_by_another(finished, llava_model, instruction_data, tmp_path):
    origin = ExitGates.from_pretrained(finished).origin
    tower = json.loads((llava_model / "config.json").read_text())["mm_vision_tower"]
    assert (origin.base_model, origin.model_family) == (llava_model.name, "llava_llama")
    assert origin.base_sha256 == checkpoint_digest(str(llava_model), tower)
    assert isinstance(origin.trained_on, TrainedOn) and origin.trained_on.samples == 32
    other = tmp_path / "llava-other"
    shutil.copytree(llava_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    more = ("--visual_gates", str(finished), "--max_steps", "1", "--save_strategy", "no")
    with pytest.raises(ValueError, match=f"trained for {llava_model.name} .*not for llava-other "):
        train(argv=gate_flags(other, instruction_data, tmp_path / "out", *more))
    open_model(ModelOptions(str(llava_model), template="v1", gates=str(finished), device="cpu"))
    with pytest.raises(ValueError, match="trained for .*not for llava-other "):
        open_model(ModelOptions(str(other), template="v1", gates=str(finished), device="cpu"))


def test_checkpoint_that_carries_its_tower_and_its_gates(
    llava_model, vision_tower, instruction_data, tmp_path
):
    """A tower named relative to the checkpoint is found, and gates inside it are where training starts."""
    carrying = tmp_path / "carrying"
    shutil.copytree(llava_model, carrying)
    shutil.copytree(vision_tower, carrying / "tower")
    config = json.loads((carrying / "config.json").read_text())
    (carrying / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "tower"}))
    torch.manual_seed(5)
    start = ExitGates(4, 32, width=8)
    start.save_pretrained(carrying)
    more = ("--learning_rate", "0", "--max_steps", "1")
    train(argv=gate_flags(carrying, instruction_data, tmp_path / "out", *more))
    assert_same(carrying, tmp_path / "out")


def test_gates_need_a_model_with_a_tower(language_model, instruction_data, tmp_path):
    with pytest.raises(ValueError, match="no vision tower"):
        train(argv=gate_flags(language_model, instruction_data, tmp_path / "out"))

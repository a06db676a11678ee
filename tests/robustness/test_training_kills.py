"""Kills and full disks: what was written is whole, and the end is that of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from dyvte import ExitGates
from dyvte.gates import files, store_states, trainer
from dyvte.gates.trainer import newest_checkpoint
from dyvte.weights import write_tensors
from llava.train.train import train
from tests.robustness.bad_disk import read_only, told

ROOT = Path(__file__).parents[2]
TINY = ROOT / "playground" / "tiny"
KILLS = 6
SAMPLES = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with instruction data about one image."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(TINY / "example.jpg", folder / "a.jpg")
    asked = ("What digit is red?", "What colour is the 5?", "How many digits are there?")
    records = [
        {
            "id": number,
            "image": "a.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\n{asked[number % 3]}"},
                {"from": "gpt", "value": str(number % 10)},
            ],
        }
        for number in range(SAMPLES)
    ]
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def train_flags(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "-m", "llava.train.train", "--tune_visual_gates", "True", "--model_name_or_path", str(TINY / "model"),
        "--visual_gates", str(TINY / "gates"), "--version", "vicuna_v1_nosys", "--data_path", str(data / "data.json"),
        "--image_folder", str(data), "--output_dir", str(output), "--per_device_train_batch_size", "2",
        "--learning_rate", "1e-3", "--lr_scheduler_type", "cosine", "--save_steps", "1", "--save_total_limit", "2",
        "--report_to", "none", "--use_cpu", "True", "--model_max_length", "512", *more,
    ]  # fmt: skip


def store_flags(data: Path, output: Path) -> list[str]:
    return [
        "-m", "dyvte.gates.store_states", "--model-path", str(TINY / "model"), "--version", "vicuna_v1_nosys",
        "--data-path", str(data / "data.json"), "--image-folder", str(data), "--output", str(output),
        "--batch-size", "2", "--shard-size", "2", "--device", "cpu", "--model-max-length", "512",
    ]  # fmt: skip


def start(arguments: list[str], processes: int = 1, limit: int | None = None) -> subprocess.Popen:
    """Start a command; ``limit`` is the size of the largest file that it may write."""
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}

    def small_disk() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env=os.environ | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=small_disk,  # noqa: PLW1509 - no threads here
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def killed_at_random(arguments: list[str], draw: random.Random, longest: float) -> None:
    """Start, and kill after a random time, until it was killed often enough or has ended."""
    for _ in range(KILLS):
        process = start(arguments)
        try:
            process.wait(timeout=draw.uniform(0.2, 1.0) * longest)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output[-3000:]


def timed(arguments: list[str]) -> float:
    begun = time.monotonic()
    finish(start(arguments))
    return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_gate_training_killed_at_random_ends_as_if_it_had_not_been(seed, data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    seconds = timed(train_flags(data, whole))
    killed_at_random(train_flags(data, broken), random.Random(seed), seconds)
    finish(start(train_flags(data, broken)))
    first, second = (load_file(folder / "gates.safetensors") for folder in (whole, broken))
    assert set(first) == set(second)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert (whole / "gates.json").read_bytes() == (broken / "gates.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_state_store_killed_at_random_ends_as_if_it_had_not_been(seed, data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    seconds = timed(store_flags(data, whole))
    killed_at_random(store_flags(data, broken), random.Random(seed), seconds)
    finish(start(store_flags(data, broken)))
    contents = [
        {
            path.name: path.read_bytes()
            for path in folder.iterdir()
            if path.suffix in (".json", ".safetensors")
        }
        for folder in (whole, broken)
    ]
    assert contents[0] == contents[1] and len(contents[0]) == SAMPLES // 2 + 1


@pytest.mark.slow
def test_gates_killed_while_they_are_saved_are_old_or_new_or_told(tmp_path):
    """Never other weights under a description that is not theirs."""
    code = (
        "import sys, torch\nfrom dyvte import ExitGates\nnumber = 0\n"
        "print('begun', flush=True)\n"
        "while True:\n    number += 1\n    gates = ExitGates(8, 256, width=256)\n"
        "    for value in gates.parameters(): value.data.fill_(number % 1000)\n"
        "    gates.calibration = {'threshold': 0.001 * (number % 1000)}\n"
        f"    gates.save_pretrained({str(tmp_path / 'gates')!r})\n"
    )
    draw, told = random.Random(0), 0
    for _ in range(30):
        process = start(["-c", code])
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(draw.uniform(0.1, 0.6))
        process.kill()
        process.communicate()
        try:
            gates = ExitGates.from_pretrained(tmp_path / "gates")
        except FileNotFoundError as error:
            told += 1
            assert "gates" in str(error)
        else:
            (value,) = {float(value.detach().flatten()[0]) for value in gates.parameters()}
            assert gates.threshold == pytest.approx(0.001 * value)
    assert told < 30


def test_description_never_stands_by_other_gates(tmp_path, monkeypatch):
    """The moment between the two files: the old description is gone before new weights are there."""
    old = ExitGates(2, 16, width=4)
    old.calibration = {"threshold": 0.9}
    old.save_pretrained(tmp_path)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        old.save_pretrained(tmp_path)  # the same weights, as a calibration in place has them
    assert ExitGates.from_pretrained(tmp_path).threshold == 0.9
    with pytest.raises(KeyboardInterrupt):
        ExitGates(2, 16, width=4).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="gates.json is missing"):
        ExitGates.from_pretrained(tmp_path)


def test_full_disk_is_told_with_the_file(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(4)})
    before = (tmp_path / "a.safetensors").read_bytes()
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom dyvte.weights import write_tensors, writing\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "for name, write in (('a.safetensors', lambda path: write_tensors(path, {'a': torch.zeros(100000)})),\n"
        "                    ('b.bin', lambda path: torch.save({'a': torch.zeros(100000)}, path))):\n"
        "    try:\n"
        "        with writing(folder / name):\n"
        "            write(folder / name)\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    output = finish(start(["-c", code], limit=50_000)).splitlines()
    for line, name in zip(output, ("a.safetensors", "b.bin"), strict=True):
        assert line.startswith(f"{tmp_path / name} cannot be written; is there space and permission? (")
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_training_on_a_full_disk_ends_in_one_line(data, tmp_path):
    """The optimizer's state, the largest file, does not fit; nothing is resumed from the half of a checkpoint."""
    output = tmp_path / "out"
    process = start(train_flags(data, output, "--max_steps", "2"), limit=3_000_000)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in told
    line = f"python -m llava.train.train: {output / 'checkpoint-1'} cannot be written; is there space"
    assert line in told
    assert newest_checkpoint(output) is None


def test_state_store_on_a_full_disk(data, tmp_path):
    """A shard that does not fit is not there, and what did fit is kept."""
    flags, output = store_flags(data, tmp_path / "store")[2:], tmp_path / "store"
    store_states.main(store_flags(data, tmp_path / "whole")[2:])
    size = (tmp_path / "whole" / "states-00000.safetensors").stat().st_size
    for largest in (200, size - 1):  # the manifest, and then a shard
        line = told(lambda: store_states.main(flags), largest)  # noqa: B023 - called at once
        assert str(output) in line
        assert not list(output.glob("*.safetensors")) and not list(output.glob(".*.tmp"))
    store_states.main(flags)
    for path in (tmp_path / "whole").glob("[a-z]*"):
        assert path.read_bytes() == (output / path.name).read_bytes()


def test_training_and_store_in_a_folder_that_is_read_only(data, tmp_path):
    """With the gates of an earlier run in it, which stay as they are."""
    output = tmp_path / "out"
    ExitGates(2, 16, width=4).save_pretrained(output)
    before = {path: path.read_bytes() for path in output.iterdir()}
    read_only(output)
    for line in (
        told(lambda: train(argv=train_flags(data, output)[2:])),
        told(lambda: store_states.main(store_flags(data, output)[2:])),
    ):
        assert "ermission denied" in line and str(output) in line
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_second_run_in_a_folder_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "WAIT", 0.1)
    output = tmp_path / "out"
    output.mkdir()
    with (
        FileLock(output / ".lock"),
        pytest.raises(ValueError, match=f"another run is writing {output}; wait for it"),
    ):
        train(argv=train_flags(data, output)[2:])


def test_workers_end_with_the_launcher_and_leave_the_folder_free(data, tmp_path):
    output = tmp_path / "out"
    arguments = train_flags(data, output, "--num_train_epochs", "500", "--save_strategy", "steps")
    process = start(arguments, processes=2)
    deadline = time.monotonic() + 240
    while not (output / "checkpoint-2" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(TimeoutError), FileLock(output / ".lock", timeout=0):
        pass
    process.kill()
    with FileLock(output / ".lock", timeout=20):  # its workers are gone
        newest = max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))
        time.sleep(2)
        assert max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")) == newest
    process.communicate()

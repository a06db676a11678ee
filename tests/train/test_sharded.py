"""What several processes do together equals what one does: gates, stores and answers.

The processes are real ones, under torchrun, over gloo; on "two machines" each has a torchrun of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dyvte import ExitGates
from dyvte.engine import shards
from dyvte.gates import store_states
from dyvte.gates.store import Manifest, StateStore, StoreWriter
from llava.eval import model_vqa_loader
from llava.train.train import train
from tests.train.test_gate_runs import assert_same, gate_flags
from tests.train.test_state_store import content, store_flags

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"}
MORE = ("--group_by_modality_length", "True", "--save_strategy", "no")
"""Text-only samples fall unevenly on the processes."""


def finish(*commands: list[str], environments: tuple[dict[str, str], ...] = ({},)) -> list[str]:
    """Run commands at the same time; what they print."""
    processes = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, printed, strict=True):
        assert process.returncode == 0, output[-4000:]
    return printed


def two_processes(*arguments: str) -> str:
    """Run a program or ``-m`` and a module in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return finish([*launcher, *arguments])[0]


@pytest.fixture(scope="module")
def alone(llava_model, instruction_data, tmp_path_factory) -> Path:
    """Gates that one process trains, eight samples a step."""
    output = tmp_path_factory.mktemp("sharded") / "alone"
    train(argv=gate_flags(llava_model, instruction_data, output, *MORE, "--per_device_train_batch_size", "8"))
    return output


@pytest.fixture(scope="module")
def together(llava_model, instruction_data, tmp_path_factory) -> Path:
    """Gates that two processes train which share the model, four samples a step each."""
    output = tmp_path_factory.mktemp("sharded") / "together"
    flags = gate_flags(llava_model, instruction_data, output, *MORE, "--shard_model", "True")
    two_processes("-m", "llava.train.train", *flags)
    return output


def test_processes_that_share_the_model_train_the_same_gates(alone, together):
    assert_same(alone, together, tolerance=1e-6)


def test_two_machines_train_the_same_gates(alone, together, llava_model, instruction_data, tmp_path):
    """The script with NNODES=2, once per machine, each with a process and an output folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(REPOSITORY / "scripts" / "v1_5" / "finetune_visual_gate.sh")
    machines = [
        {
            "PYTHON": sys.executable, "NNODES": "2", "NODE_RANK": rank, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "NPROC": "1", "GLOBAL_BATCH": "8", "BATCH": "4", "BF16": "False",
            "OUTPUT": str(tmp_path / rank), "WORKERS": "0",
        }
        for rank in "01"
    ]  # fmt: skip
    flags = gate_flags(llava_model, instruction_data, "OUTPUT", *MORE)
    at = flags.index("--output_dir")
    command = ["bash", script, *flags[:at], *flags[at + 2 :]]
    finish(command, command, environments=tuple(machines))
    assert_same(together, tmp_path / "0")  # exactly: sums over two processes, wherever these are
    assert_same(alone, tmp_path / "0", tolerance=1e-6)
    assert not (tmp_path / "1" / "gates.safetensors").exists()  # the first machine writes


@pytest.mark.parametrize("more", [(), ("--shard-model",)], ids=["each with a model", "sharing a model"])
def test_processes_write_one_store(more, llava_model, instruction_data, tmp_path):
    """Five shards for two processes: one of them has more to do."""
    flags = store_flags(llava_model, instruction_data, tmp_path / "alone", "--attention")
    store_states.main(flags)
    flags = store_flags(llava_model, instruction_data, tmp_path / "together", "--attention", *more)
    two_processes("-m", "dyvte.gates.store_states", *flags)
    assert content(tmp_path / "together") == content(tmp_path / "alone")
    assert len(StateStore(tmp_path / "together").index) == 24
    assert not list((tmp_path / "together").glob(".states-*"))


ANSWER = """
import json, sys, torch
from pathlib import Path
from PIL import Image
from accelerate import PartialState
from dyvte.decoding.sharding import in_step, is_sharded
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.questions import Question

model, gates, output = sys.argv[1:]
process = PartialState(cpu=True)
shared = process.num_processes > 1
chat = open_model(ModelOptions(model, template="v1", gates=gates, device="cpu", shard_model=shared))
assert is_sharded(chat.model) == shared
layer = sum(parameter.to_local().numel() if shared else parameter.numel()
            for parameter in chat.model.model.layers[0].parameters())
answers = {}
with in_step(chat.model):
    for number in range(7):  # five for the first process, two for the second
        if shared and (number % 4 == 1) != bool(process.process_index):
            continue
        answerer = Answerer(chat, Generation(max_new_tokens=3 + 5 * (number % 3)))
        image = Image.new("RGB", (30 + number, 40), (30 * number, 200 - 20 * number, 30))
        [answer] = answerer.ask([Question("What colour is the ball?" * (number + 1), (image,))])
        answers[number] = [answer.text, answer.report.exit_layer, answer.report.tokens_per_layer]
Path(output, f"{process.process_index}.json").write_text(json.dumps([layer, answers]))
"""


def test_processes_that_share_the_model_answer_the_same(llava_model, tmp_path):
    """Answers of different lengths, exits after different layers, and another number of questions for each."""
    ExitGates(4, 32, width=8).save_pretrained(tmp_path / "gates")
    program = tmp_path / "answer.py"
    program.write_text(ANSWER)
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    where = [str(program), str(llava_model), str(tmp_path / "gates")]
    finish([sys.executable, *where, str(tmp_path / "alone")])
    two_processes(*where, str(tmp_path / "together"))
    whole, expected = json.loads((tmp_path / "alone" / "0.json").read_text())
    parts = [json.loads((tmp_path / "together" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(answers) for _, answers in parts] == [5, 2]
    assert parts[0][1] | parts[1][1] == expected
    assert sum(layer for layer, _ in parts) == whole


def test_answers_of_shards_that_share_the_model(llava_model, tmp_path):
    """As those of one process; a run that goes on has a shard with nothing left, which helps the other."""
    ExitGates(4, 32, width=8).save_pretrained(tmp_path / "gates")
    rows = [{"question_id": n, "image": f"{n}.png", "text": "What colour is it?" * (n + 1)} for n in range(5)]
    for n in range(5):
        Image.new("RGB", (30 + n, 40), (30 * n, 200 - 20 * n, 30)).save(tmp_path / f"{n}.png")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "llava.eval.model_vqa_loader",
        "--model-path",
        str(llava_model),
        "--device",
        "cpu",
    ]
    command += [
        "--gates",
        str(tmp_path / "gates"),
        "--question-file",
        str(tmp_path / "q.jsonl"),
        "--temperature",
        "0",
    ]
    command += ["--image-folder", str(tmp_path), "--max_new_tokens", "9", "--conv-mode", "vicuna_v1"]
    finish([*command, "--answers-file", str(tmp_path / "alone.jsonl")])
    alone = answers_in(tmp_path / "alone.jsonl")
    out = tmp_path / "together"
    shards = [
        sys.executable,
        "-m",
        "dyvte.engine.shards",
        str(out),
        "--chunks",
        "2",
        "--",
        *command,
        "--shard-model",
    ]
    finish(shards)
    assert answers_in(out / "merge.jsonl") == alone and len(alone) == 5
    first = (out / "2_0.jsonl").read_bytes().splitlines(keepends=True)
    (out / "2_0.jsonl").write_bytes(b"".join(first[:1]))
    (second := out / "2_1.jsonl").touch()
    before = second.stat().st_mtime_ns
    finish(shards)
    assert answers_in(out / "merge.jsonl") == alone and second.stat().st_mtime_ns == before
    (tmp_path / "gates" / "gates.safetensors").write_bytes(b"")  # found out once the processes have met
    process = subprocess.run(
        shards, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 1 and "of 2 failed (see above)" in process.stderr
    assert answers_in(out / "merge.jsonl") == alone


def answers_in(file: Path) -> list[tuple]:
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    fields = ("exit_layer", "tokens_per_layer", "exit_probabilities")
    return [(a["question_id"], a["text"], *(a["metadata"][field] for field in fields)) for a in answers]


def test_shards_that_share_a_model_have_to_meet(tmp_path):
    (tmp_path / "q.jsonl").touch()
    flags = ["--shard-model", "--question-file", str(tmp_path / "q.jsonl")]
    with pytest.raises(ValueError, match="takes several processes"):
        model_vqa_loader.eval_model(model_vqa_loader.build_parser().parse_args(flags))
    with pytest.raises(SystemExit, match="set MASTER_ADDR"):
        shards.main([str(tmp_path), "--chunks", "2", "--shards", "1", "--", "python", "--shard-model"])


@pytest.mark.parametrize(
    "more, message",
    [
        (("--shard_model", "True"), "one process alone"),
        (("--device_map", "auto", "--shard_model", "True"), "leave it out"),
        (("--device_map", "balanced"), "must be auto"),
        (("--deepspeed", str(REPOSITORY / "scripts" / "zero3.json")), "--shard_model True"),
    ],
)
def test_what_cannot_be_sharded_is_refused(more, message, llava_model, instruction_data, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(argv=gate_flags(llava_model, instruction_data, tmp_path, *more))


def test_a_shard_is_claimed_once(tmp_path):
    fields = {"model": "m", "data": "d", "settings": {}, "states": ["last_text"], "dtype": "float32"}
    manifest = Manifest(**fields, num_layers=1, hidden_size=1, samples=5, shard_size=2)
    first, second = (StoreWriter(tmp_path, manifest) for _ in range(2))
    mine, theirs = first.claims(), second.claims()
    assert next(mine) == (0, range(2)) and next(theirs) == (1, range(2, 4))
    theirs.close()  # as when its process ends without writing
    assert next(mine) == (1, range(2, 4))
    first.write(1, {"index": torch.zeros(0)})
    assert next(mine) == (2, range(4, 5)) and [number for number, _ in second.claims()] == [0]
    assert list(mine) == [] and not list(tmp_path.glob(".states-*"))

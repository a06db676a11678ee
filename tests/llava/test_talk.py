"""One question and a chat, as a person sees them; the package's light surface."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dyvte import ExitGates
from llava.eval import run_llava
from llava.serve import cli
from llava.utils import build_logger, disable_torch_init


@pytest.fixture
def image_file(tmp_path):
    Image.new("RGB", (50, 20), (200, 0, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def ask(argv):
    return run_llava.eval_model(run_llava.build_parser().parse_args([str(word) for word in argv]))


def test_run_llava_prints_the_answer_and_the_exit(checkpoint, image_file, capsys):
    given = ["--model-path", checkpoint, "--query", "What is it?", "--temperature", 0, "--max_new_tokens", 3]
    answer = ask([*given, "--image-file", image_file])
    assert capsys.readouterr().out == answer.text + "\n"
    answer = ask([*given, "--image-file", image_file, "--method", "fixed", "--exit-layer", 1])
    printed = capsys.readouterr().out
    assert printed.startswith(answer.text + "\nexit: after layer 1 of 0..2\n") and "TFLOPs" in printed
    assert answer.report.saved_tflops > 0
    answer = ask([*given, "--image-file", f"{image_file}|{image_file}", "--sep", "|"])
    assert answer.report.visual_tokens == 8


def test_run_llava_shows_gate_probabilities(checkpoint, image_file, tmp_path, capsys):
    from dyvte import ExitGates

    ExitGates(3, 32, width=8).save_pretrained(tmp_path / "gates")
    ask(
        [
            "--model-path",
            checkpoint,
            "--query",
            "What?",
            "--image-file",
            image_file,
            "--temperature",
            0,
            "--max_new_tokens",
            2,
            "--gates",
            tmp_path / "gates",
            "--threshold",
            1,
        ]
    )
    printed = capsys.readouterr().out
    assert "exit: none" in printed and "exit probability by layer: 0:0." in printed and " 2:0." in printed


def test_run_llava_from_python(checkpoint, image_file, capsys):
    """The call that LLaVA's users write: a made-up class with the flags of the original, and no others."""
    args = type(
        "Args",
        (),
        {
            "model_path": str(checkpoint),
            "model_base": None,
            "model_name": "llava-v1.5-tiny",
            "query": "What is it?",
            "conv_mode": None,
            "image_file": str(image_file),
            "sep": ",",
            "temperature": 0,
            "top_p": None,
            "num_beams": 1,
            "max_new_tokens": 2,
        },
    )()
    assert run_llava.eval_model(args).text + "\n" == capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("llava-v1.5-7b", "llava_v1"),
        ("llava-llama-2-13b", "llava_llama_2"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("mpt-7b", "mpt"),
        ("llava-13b", "llava_v0"),
    ],
)
def test_modes_by_name(name, mode):
    assert run_llava.infer_conv_mode(name) == mode


def test_mode_that_the_config_names(tmp_path):
    assert run_llava.infer_conv_mode("llava-v1.5-7b", str(tmp_path)) == "llava_v1"
    (tmp_path / "config.json").write_text('{"conversation_template": "mpt"}')
    assert run_llava.infer_conv_mode("llava-v1.5-7b", str(tmp_path)) == "mpt"
    shipped = Path(__file__).parents[2] / "playground" / "tiny" / "model"
    assert run_llava.infer_conv_mode("model", str(shipped)) == "vicuna_v1_nosys"


def chat(monkeypatch, checkpoint, image_file, typed, *more):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    argv = [
        "--model-path",
        checkpoint,
        "--image-file",
        image_file,
        "--temperature",
        0,
        "--max-new-tokens",
        3,
        *more,
    ]
    cli.main(cli.build_parser().parse_args([str(word) for word in argv]))


def test_chat_keeps_its_turns(monkeypatch, checkpoint, image_file, capsys):
    chat(
        monkeypatch,
        checkpoint,
        image_file,
        "What is it?\nAnd why?\n\nnever\n",
        "--method",
        "fixed",
        "--exit-layer",
        0,
        "--debug",
    )
    printed = capsys.readouterr().out
    prompts = [line for line in printed.splitlines() if line.startswith("{'prompt'")]
    assert len(prompts) == 2 and printed.count("exit: after layer 0 of 0..2") == 2
    assert "USER: <image>\\nWhat is it? ASSISTANT:" in prompts[0]
    assert prompts[1].count("<image>") == 1 and "</s>USER: And why? ASSISTANT:" in prompts[1]
    assert printed.rstrip().endswith("bye")


def test_a_turn_that_cannot_be_asked_does_not_end_the_chat(monkeypatch, checkpoint, image_file, capsys):
    typed = "What is it?\nWhat does <image> mean?\nAnd why?\n\n"
    chat(monkeypatch, checkpoint, image_file, typed, "--debug")
    printed = capsys.readouterr().out
    assert printed.count("{'prompt'") == 2 and printed.rstrip().endswith("bye")
    assert "[not asked: the text has places for 1 images, but comes with 0" in printed


def test_prompts_that_would_lose_their_question_are_refused(checkpoint, image_file, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "llava-v1.5-tiny")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tokenizer_model_max_length": 60}))
    given = ["--model-path", model, "--query", "red", "--temperature", 0, "--max_new_tokens", 2, "--sep", "|"]
    given += ["--conv-mode", "plain"]
    ask([*given, "--image-file", image_file])
    with pytest.raises(
        ValueError, match="a prompt of .* tokens, of which 80 are of images, is longer than 60"
    ):
        ask([*given, "--image-file", "|".join([str(image_file)] * 20)])


def test_chat_ends_with_its_input(monkeypatch, checkpoint, image_file, capsys):
    chat(monkeypatch, checkpoint, image_file, "What is it?")
    printed = capsys.readouterr().out
    assert printed.count("ASSISTANT:") == 1 and "exit:" not in printed and printed.endswith("bye\n")


def test_chat_shows_what_the_gates_say(monkeypatch, checkpoint, image_file, capsys, tmp_path):
    ExitGates(3, 32, width=8).save_pretrained(tmp_path)
    chat(monkeypatch, checkpoint, image_file, "What is it?", "--gates", tmp_path, "--threshold", 1)
    printed = capsys.readouterr().out
    assert "exit: none" in printed and "prefill: " in printed
    bars = [line for line in printed.splitlines() if "\u2501" * 5 in line]
    assert len(bars) == 3


def test_errors_are_one_line(checkpoint, tmp_path):
    command = [
        sys.executable,
        "-m",
        "llava.eval.run_llava",
        "--model-path",
        str(checkpoint),
        "--query",
        "What?",
        "--image-file",
        str(tmp_path / "none.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith(f"image file not found: {tmp_path / 'none.png'}")


def test_importing_llava_is_light():
    code = (
        "import sys, llava, llava.constants; assert 'torch' not in sys.modules, 'torch'; "
        "from llava import LlavaLlamaForCausalLM; from llava.model import LlavaConfig; "
        "assert LlavaLlamaForCausalLM.config_class is LlavaConfig"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loggers_and_the_old_switch(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr("llava.utils.LOGDIR", str(tmp_path / "logs"))
    logger = build_logger("face-test", "face.log")
    assert build_logger("face-test", "face.log") is logger and len(logger.handlers) == 2
    logger.info("written")
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    assert "written" in (tmp_path / "logs" / "face.log").read_text()
    assert logger.level == logging.INFO
    disable_torch_init()
    assert torch.nn.Linear(64, 64).weight.abs().max() > 0

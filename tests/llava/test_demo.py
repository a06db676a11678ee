"""The demo without its page: both answers of a question, what is drawn of them, and the command line."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image

from dyvte.decoding.policy import NoExit
from dyvte.decoding.report import PrefillReport
from dyvte.engine.answer import Answer
from dyvte.engine.options import open_answerer
from dyvte.engine.questions import Question
from llava.serve.demo import build_parser, main, open_session
from llava.serve.demo_charts import costs, gate_bars, token_bars
from llava.serve.demo_session import Controls, Pieces, Session, Turn

TINY = "playground/tiny"
IMAGE = Image.open(f"{TINY}/example.jpg").convert("RGB")
QUESTION = "What digit is red?"


def opened(*flags):
    return open_session(build_parser().parse_args([str(flag) for flag in (*flags, "--device", "cpu")]))


@pytest.fixture(scope="module")
def tiny():
    """Tiny-LLaVA with its gates: what the command opens when it is told nothing."""
    session, _ = opened()
    return session


@pytest.fixture(scope="module")
def talkative(checkpoint):
    """A random model without gates that does not end an answer by itself."""
    session, _ = opened("--model-path", checkpoint, "--max-new-tokens", 200)
    return session


def last_of(turns):
    *_, turn = turns
    return turn


@pytest.mark.parametrize(
    ("method", "layer"),
    [("dyvte", None), ("fixed", 3), ("fastv", None), ("vtw", None), ("dyvte+fastv", None)],
)
def test_both_answers_are_the_engines(tiny, method, layer):
    turn = last_of(tiny.ask(IMAGE, [], QUESTION, Controls(method, exit_layer=layer)))
    arguments = argparse.Namespace(
        model_path=f"{TINY}/model",
        gates=f"{TINY}/gates" if "dyvte" in method else None,
        method=method,
        exit_layer=layer,
        device="cpu",
        max_new_tokens=256,
        temperature=0.0,
    )
    answerer = open_answerer(arguments, None)
    (exiting,) = answerer.ask([Question(QUESTION, [IMAGE])])
    answerer.handle.policy = NoExit()
    (plain,) = answerer.ask([Question(QUESTION, [IMAGE])])
    for shown, engine in ((turn.plain, plain), (turn.exiting, exiting)):
        assert shown.text == engine.text != ""
        assert shown.report.tokens_per_layer == engine.report.tokens_per_layer
        assert shown.report.exit_probabilities == engine.report.exit_probabilities
        assert shown.report.tflops == engine.report.tflops and shown.report.seconds > 0
    assert turn.exiting.report.kv_bytes < turn.plain.report.kv_bytes


def test_text_comes_in_pieces(talkative):
    turns = list(talkative.ask(IMAGE, [], QUESTION, Controls("fixed", exit_layer=1)))
    plain = [turn.plain.text for turn in turns if turn.plain.report is None]
    assert len(plain) > 5 and all(b.startswith(a) for a, b in zip(plain, plain[1:], strict=False))
    exiting = [turn.exiting.text for turn in turns if turn.plain.report is not None]
    assert exiting[0] == "" and len(exiting) > 5, "the second answer follows the first"
    assert turns[-1].exiting.report.exit_layer == 1 and turns[-1].plain.report.exit_layer is None


def test_each_side_has_its_own_history(tiny, monkeypatch):
    prompts = []
    complete = tiny._answerer.chat.prompt
    monkeypatch.setattr(
        tiny._answerer.chat, "prompt", lambda *given: prompts.append(complete(*given)) or prompts[-1]
    )
    past = Turn("What is it?", Answer("a plain answer"), Answer("a cheap answer"))
    turn = last_of(tiny.ask(IMAGE, [past], "And why?", Controls("dyvte")))
    assert turn.question == "And why?" and turn.exiting.report.visual_tokens == 81
    for prompt, answer in zip(prompts, ("a plain answer", "a cheap answer"), strict=True):
        assert prompt.count("<image>") == 1 and prompt.index("<image>") < prompt.index("What is it?")
        assert f"ASSISTANT: {answer}</s>USER: And why? ASSISTANT:" in prompt


def test_a_reader_who_leaves_ends_the_answer(talkative, monkeypatch):
    tokens = []
    put = Pieces.put
    monkeypatch.setattr(Pieces, "put", lambda self, value: tokens.append(1) or put(self, value))
    asking = talkative.ask(IMAGE, [], QUESTION, Controls("fixed", exit_layer=0))
    while not next(asking).plain.text:
        pass
    asking.close()
    turn = last_of(talkative.ask(IMAGE, [], QUESTION, Controls("fixed", exit_layer=0)))
    assert turn.exiting.report.exit_layer == 0
    assert 400 < len(tokens) < 590, "two whole answers of 200 tokens, and the beginning of one"


def test_an_answer_that_fails_does_not_hang(tiny, monkeypatch):
    def fail(*given):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(tiny._answerer.chat, "generate", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(tiny.ask(IMAGE, [], QUESTION, Controls("dyvte")))
    assert last_of(tiny.ask(IMAGE, [], QUESTION, Controls("dyvte"))).exiting.text == "5"


def test_a_model_that_says_nothing_is_told(tiny, monkeypatch):
    monkeypatch.setattr("llava.serve.demo_session.PATIENCE", 0.2)
    monkeypatch.setattr(tiny, "_answer", lambda *given: time.sleep(1))
    with pytest.raises(ValueError, match=r"no text for 0.2 seconds"):
        list(tiny.ask(IMAGE, [], QUESTION, Controls("dyvte")))


@pytest.mark.parametrize(
    ("image", "text", "controls", "message"),
    [
        (None, "What?", Controls("dyvte"), "Choose an image first"),
        (IMAGE, " \n", Controls("dyvte"), "Type a question"),
        (IMAGE, "w" * 4001, Controls("dyvte"), "more than 4000 characters"),
        (IMAGE, "<image> or <image>?", Controls("dyvte"), "places for 2 images, but comes with 1"),
        (IMAGE, "\ud800", Controls("dyvte"), "half of a character"),
        (IMAGE, "What? " * 600, Controls("dyvte"), "is longer than 512"),
        (IMAGE, "What?", Controls("dyvte", threshold=2), r"must lie in \[0, 1\]"),
        (IMAGE, "What?", Controls("fixed", exit_layer=20), "not one of the model's layers 0..19"),
        (IMAGE, "What?", Controls("fastv", settings="k=x"), "must be a whole number"),
        (IMAGE, "What?", Controls("best"), "'best' is not one of"),
    ],
)
def test_what_cannot_be_asked(tiny, image, text, controls, message):
    with pytest.raises(ValueError, match=message):
        list(tiny.ask(image, [], text, controls))


def test_methods_are_those_that_fit(tiny, talkative):
    assert tiny.methods[:3] == ["dyvte", "fixed", "fastv"] and "tome" in tiny.methods
    assert "dyvte" not in talkative.methods and talkative.methods[0] == "fixed"


def test_a_model_of_transformers(llava_hf):
    session, controls = opened("--model-path", llava_hf, "--max-new-tokens", 4, "--exit-layer", 0)
    assert controls == Controls("fixed", 0.5, 0)
    past = last_of(session.ask(IMAGE, [], "What is it?", controls))
    turn = last_of(session.ask(IMAGE, [past], "And why?", controls))
    assert turn.exiting.report.exit_layer == 0 and turn.exiting.report.saved_tflops > 0
    assert turn.plain.report.prompt_tokens > past.plain.report.prompt_tokens


def test_a_language_model_has_no_image(monkeypatch):
    class Answerer:
        handle = None

    with pytest.raises(ValueError, match="takes images"):
        Session(Answerer())  # type: ignore[arg-type]


REPORT = PrefillReport(
    exit_layer=2,
    tokens_per_layer=(100, 100, 100, 20),
    exit_probabilities=(None, 0.25, 0.75),
    tflops=3.0,
    decoder_tflops=2.0,
    full_decoder_tflops=3.0,
    kv_bytes=3 << 20,
    prompt_tokens=100,
    visual_tokens=80,
    seconds=0.5,
)
PLAIN = replace(
    REPORT,
    exit_layer=None,
    tokens_per_layer=(100,) * 4,
    exit_probabilities=(),
    tflops=4.0,
    kv_bytes=4 << 20,
    seconds=1.0,
)


def test_bars():
    assert [(bar.layer, bar.value, bar.part) for bar in gate_bars(REPORT)] == [
        ("0", 0.0, "not asked"),
        ("1", 0.25, "image stays"),
        ("2", 0.75, "image leaves"),
        ("3", 0.0, "not asked"),
    ]
    assert gate_bars(PLAIN) == []
    bars = token_bars(REPORT)
    assert [bar.value for bar in bars if bar.part == "visual"] == [80, 80, 80, 0]
    assert [bar.value for bar in bars if bar.part == "text"] == [20, 20, 20, 20]


def test_costs():
    turn = Turn("What?", Answer("red", PLAIN), Answer("red", REPORT))
    lines = costs(turn, "DyVTE").splitlines()
    assert lines[0] == "The image leaves after **layer 2** of 0 to 3: the same answer."
    assert lines[2:4] == ["| | Without exit | DyVTE | Saved |", "| :-- | --: | --: | --: |"]
    assert lines[4:] == [
        "| Prefill, TFLOPs | 4.00 | 3.00 | 25% |",
        "| KV cache after prefill, MiB | 4.00 | 3.00 | 25% |",
        "| Whole answer, seconds | 1.00 | 0.500 | 50% |",
    ]
    kept = replace(REPORT, exit_layer=None, tokens_per_layer=(100, 100, 60, 60), prompt_tokens=100)
    assert costs(replace(turn, exiting=Answer("blue", kept)), "FastV").startswith(
        "**40 of 80 visual tokens** reach the last layer: a different answer."
    )
    assert costs(replace(turn, exiting=Answer("red", PLAIN)), "DyVTE").startswith(
        "The image stays to the last layer"
    )
    longer = costs(replace(turn, exiting=Answer("red", replace(REPORT, prompt_tokens=104))), "DyVTE")
    assert longer.endswith("so the prompts do: 100 and 104 tokens.")
    assert costs(Turn("What?", Answer("red", PLAIN), Answer("re")), "DyVTE") == ""


def test_controls_of_the_command_line(tiny):
    _, controls = opened("--method", "dyvte+fastv", "--method-config", "k=2", "r=0.5", "--threshold", 0.9)
    assert controls == Controls("dyvte+fastv", 0.9, 10, "k=2 r=0.5")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-path", "nowhere/at/all"], "nowhere/at/all"),
        (["--gates", "nowhere"], "nowhere"),
        (["--method", "fastv", "--method-config", "k=99"], "FastV's k must be one of 1..19"),
        (["--method", "fixed", "--exit-layer", "99"], "exit layer 99"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
    ],
)
def test_bad_arguments_are_one_line(flags, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        opened(*flags)
    assert "\n" not in str(error.value)


def test_a_port_is_a_number(capsys):
    for text in ("0", "65536", "x", "-1", "²"):
        with pytest.raises(SystemExit):
            build_parser().parse_args(["--port", text])
        assert "1 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setattr("llava.serve.demo.open_session", lambda args: pytest.fail("the model was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        args = build_parser().parse_args(["--port", str(taken.getsockname()[1])])
        with pytest.raises(
            ValueError, match=r"^cannot listen at 127.0.0.1, port \d+ \(Address already in use\)"
        ):
            main(args)


def test_a_missing_extra_is_one_line():
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from dyvte.cli import run; from llava.serve.demo import build_parser, main\n"
        "run(build_parser(), main, ['--device', 'cpu'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "pip install 'dyvte[demo]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

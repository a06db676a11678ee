"""The launcher for VLMEvalKit, against VLMEvalKit where it is installed and against a stand-in."""

from __future__ import annotations

import ssl
import sys
from types import ModuleType

import pytest

from dyvte.plugins.vlmeval import main

MODEL, GATES, PICTURE = "playground/tiny/model", "playground/tiny/gates", "playground/tiny/example.jpg"
FLAGS = [
    "--model-path",
    MODEL,
    "--gates",
    GATES,
    "--device",
    "cpu",
    "--max_new_tokens",
    "8",
    "--name",
    "tiny",
]
MESSAGE = [{"type": "image", "value": PICTURE}, {"type": "text", "value": "What digit is red?"}]


@pytest.fixture
def vlmeval(monkeypatch):
    """Modules with the few names that the launcher takes; importing them replaces the check of certificates."""
    seen = {}

    class BaseModel:
        pass

    def evaluate():
        name = sys.argv[sys.argv.index("--model") + 1]
        seen["arguments"], seen["context"] = sys.argv[1:], ssl._create_default_https_context
        seen["answer"] = models[name]().generate_inner(MESSAGE, dataset="MME")

    class Careless(ModuleType):
        def __getattr__(self, name):
            if name == "supported_VLM":
                ssl._create_default_https_context = ssl._create_unverified_context
                return models
            raise AttributeError(name)

    models = {}
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl.create_default_context)
    monkeypatch.setattr("sys.argv", sys.argv)
    monkeypatch.setitem(sys.modules, "vlmeval", ModuleType("vlmeval"))
    monkeypatch.setitem(sys.modules, "vlmeval.vlm", ModuleType("vlmeval.vlm"))
    monkeypatch.setitem(sys.modules, "vlmeval.config", Careless("vlmeval.config"))
    for name, content in {
        "vlmeval.run": {"main": evaluate},
        "vlmeval.vlm.base": {"BaseModel": BaseModel},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def test_the_model_is_in_the_list_and_answers(vlmeval):
    from dyvte.engine.answer import Answerer
    from dyvte.engine.images import load_image
    from dyvte.engine.model import Generation, ModelOptions
    from dyvte.engine.openers import open_model
    from dyvte.engine.questions import Question

    main([*FLAGS, "--", "--data", "MME", "--mode", "infer"])
    alone = Answerer(open_model(ModelOptions(MODEL, gates=GATES, device="cpu")), Generation(max_new_tokens=8))
    assert vlmeval["answer"] == alone.ask([Question("What digit is red?", [load_image(PICTURE)])])[0].text
    assert vlmeval["arguments"] == ["--model", "tiny", "--data", "MME", "--mode", "infer"]


def test_certificates_are_still_checked(vlmeval):
    main(FLAGS)
    assert vlmeval["context"] is ssl.create_default_context


def test_without_vlmevalkit_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    with pytest.raises(SystemExit, match="VLMEvalKit is not installed: pip install"):
        main(FLAGS)


def test_the_names_that_the_launcher_takes_are_there():
    config = pytest.importorskip("vlmeval.config")
    run, base = pytest.importorskip("vlmeval.run"), pytest.importorskip("vlmeval.vlm.base")
    assert isinstance(config.supported_VLM, dict) and callable(run.main) and callable(base.BaseModel)

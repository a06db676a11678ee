"""The model for lmms-eval: end to end in lmms-eval's own environment, and its parts against stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from dyvte.report import harness, table
from dyvte.report.record import find_records, read_records

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("LMMS_PYTHON", ROOT / ".venv-lmms/bin/python"))
MODEL, GATES = "playground/tiny/model", "playground/tiny/gates"
TASK = """
task: made_up{form}
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function made_up.visual
doc_to_text: !function made_up.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, temperature: 0, do_sample: false, until: ["\\n\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}
metadata: [{{version: 0.0}}]
"""
FUNCTIONS = """
def visual(doc):
    return [doc["image"].convert("RGB")]
def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + "\\nAnswer the question using a single word or phrase."
"""


@pytest.fixture
def lmms_module(monkeypatch):
    """:mod:`dyvte.plugins.lmms` over stand-ins for the few names it takes from lmms-eval."""

    class Base:
        rank, task_dict = 0, {}

    class Collator:
        def __init__(self, rows, sort_fn, group_fn, grouping):
            self.order = sorted(range(len(rows)), key=lambda i: sort_fn(rows[i]))
            self.rows, self.group = rows, group_fn

        def get_batched(self, n):
            groups = []
            for i in self.order:
                if groups and len(groups[-1]) < n and self.group(groups[-1][0]) == self.group(self.rows[i]):
                    groups[-1].append(self.rows[i])
                else:
                    groups.append([self.rows[i]])
            return groups

        def get_original(self, results):
            return [
                result
                for _, result in sorted(zip(self.order, results, strict=True), key=lambda pair: pair[0])
            ]

    def result(text, tokens):
        return SimpleNamespace(text=text, tokens=tokens)

    parts = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "Instance": object,
            "GenerationResult": result,
            "TokenCounts": lambda *n: n,
        },
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.utils": {"Collator": Collator},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "dyvte.plugins.lmms", raising=False)
    import dyvte.plugins.lmms as lmms

    yield lmms
    sys.modules.pop("dyvte.plugins.lmms", None)


def picture():
    return Image.open("playground/tiny/example.jpg").convert("RGB")


SETTINGS = {"max_new_tokens": 8, "temperature": 0, "do_sample": False, "until": ["\n\n"]}


def requests(texts, chat=False):
    found = []
    for number, text in enumerate(texts):
        if chat:
            content = [{"type": "image", "url": picture()}, {"type": "text", "text": text}]
            arguments = (text, lambda doc, c=content: [{"role": "user", "content": c}], SETTINGS)
        else:
            arguments = (text, SETTINGS, lambda doc: [picture()])
        found.append(SimpleNamespace(args=(*arguments, number, "made_up", "test")))
    return found


def test_both_forms_answer_as_the_project_does(lmms_module, tmp_path):
    from dyvte.engine.answer import Answerer
    from dyvte.engine.model import Generation, ModelOptions
    from dyvte.engine.openers import open_model
    from dyvte.engine.questions import Question

    texts = ["What digit is red?", "How many digits are there in this picture?", "What color is 5?"]
    alone = Answerer(open_model(ModelOptions(MODEL, gates=GATES, device="cpu")), Generation(max_new_tokens=8))
    wanted = [alone.ask([Question(text, [picture()])])[0] for text in texts]
    for form, chat in ((lmms_module.Dyvte, False), (lmms_module.DyvteChat, True)):
        reports = tmp_path / form.__name__
        model = form(pretrained=MODEL, gates=GATES, device="cpu", batch_size="2", reports=str(reports))
        model.task_dict = {"made_up": {"test": [None] * 3}}
        got = model.generate_until(requests(texts, chat))
        assert [result.text for result in got] == [answer.text for answer in wanted]
        assert got[0].tokens[0] == wanted[0].report.prompt_tokens
        run, *lines = [json.loads(line) for line in Path(f"{reports}.0.jsonl").read_text().splitlines()]
        assert (run["model"], run["method"]) == (MODEL, "dyvte")
        assert run["settings"] == {"gates": GATES, "threshold": "0.5"}
        exits = {line["doc_id"]: line["metadata"]["exit_layer"] for line in lines}
        assert [exits[i] for i in range(3)] == [answer.report.exit_layer for answer in wanted]


def test_a_second_run_does_not_write_into_the_reports_of_the_first(lmms_module, tmp_path):
    reports = str(tmp_path / "reports")
    for _ in range(2):
        model = lmms_module.Dyvte(pretrained=MODEL, method="none", device="cpu", reports=reports)
        model.task_dict = {"made_up": {"test": [None]}}
        asked = requests(["What digit is red?"])
        if not Path(f"{reports}.0.jsonl").exists():
            model.generate_until(asked)
            model.generate_until(asked)  # lmms-eval asks once for each kind of request
            assert len(Path(f"{reports}.0.jsonl").read_text().splitlines()) == 3
        else:
            with pytest.raises(ValueError, match="reports.0.jsonl holds the reports of another run"):
                model.generate_until(asked)


def test_log_likelihood_of_the_answer_is_the_highest(lmms_module):
    model = lmms_module.Dyvte(pretrained=MODEL, method="none", device="cpu")
    model.task_dict = {"made_up": {"test": [None]}}
    text = "What digit is red?"
    answer = model.generate_until(requests([text]))[0].text
    ask = [
        SimpleNamespace(args=(text, candidate, lambda doc: [picture()], 0, "made_up", "test"))
        for candidate in (answer, "zebra", lambda doc: "nine")
    ]
    (best, greedy), *others = model.loglikelihood(ask)
    assert greedy and all(best > other for other, _ in others)


def test_unknown_arguments_are_errors(lmms_module):
    with pytest.raises(ValueError, match="unknown model_args treshold: use pretrained, .*threshold"):
        lmms_module.Dyvte(pretrained=MODEL, treshold=0.5)
    with pytest.raises(ValueError, match="batch_size must be a positive number.*'auto'"):
        lmms_module.Dyvte(pretrained=MODEL, batch_size="auto")
    with pytest.raises(ValueError, match="generation_kwargs hold beam_size: use do_sample"):
        lmms_module.read_settings({"beam_size": 2})


def test_answers_end_at_the_first_stop(lmms_module):
    assert lmms_module.cut("a\n\nb. c", [". ", "\n\n"]) == "a"
    assert lmms_module.cut("a.b", []) == "a.b" == lmms_module.cut("a.b", [""])
    generation, until = lmms_module.read_settings({"do_sample": False, "temperature": 0.7, "until": "x"})
    assert generation.temperature == 0 and until == ["x"]
    generation, _ = lmms_module.read_settings({"temperature": 0.7, "top_p": 0.9})
    assert (generation.temperature, generation.top_p) == (0.7, 0.9)


def test_the_manifest_imports_nothing_heavy():
    code = "import sys, dyvte.plugins.lmms_manifest as m; print({'torch', 'transformers', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON.is_file(), reason="no environment for lmms-eval: scripts/setup_lmms.sh makes one"
)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("form", ["simple", "chat"])
def test_a_task_runs_in_the_harness(tmp_path, capsys, form, processes):
    """A failed run of lmms-eval exits with 0, so the results file is what counts."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    from dyvte.engine.answer import Answerer
    from dyvte.engine.model import Generation, ModelOptions
    from dyvte.engine.openers import open_model
    from dyvte.engine.questions import Question

    texts = [f"What digit is {color}?" for color in ("red", "blue", "green", "yellow")] * 5
    chat = open_model(ModelOptions(MODEL, gates=GATES, device="cpu"))
    answerer = Answerer(chat, Generation(max_new_tokens=8))
    prompts = [f"{text}\nAnswer the question using a single word or phrase." for text in texts]
    answers = [answerer.ask([Question(prompt, [picture()])])[0].text for prompt in prompts]
    answers[0] = "a wrong answer"
    picture().save(tmp_path / "image.png")
    image = {"bytes": (tmp_path / "image.png").read_bytes(), "path": None}
    rows = [{"question": q, "answer": a, "image": image} for q, a in zip(texts, answers, strict=True)]
    features = Features({"question": Value("string"), "answer": Value("string"), "image": ImageColumn()})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "made_up.yaml").write_text(TASK.format(form="", data=tmp_path / "test.parquet"))
    (tmp_path / "made_up.py").write_text(FUNCTIONS)
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [
        *(str(PYTHON), *launch, "-m", "lmms_eval", "--model", "dyvte", "--tasks", "made_up"),
        *(
            "--model_args",
            f"pretrained={MODEL},gates={GATES},method=dyvte,threshold=0.5,reports={tmp_path}/reports",
        ),
        *("--batch_size", "4", "--include_path", str(tmp_path), "--device", "cpu"),
        *("--log_samples", "--output_path", str(tmp_path / "out")),
        *(["--force_simple"] if form == "simple" else []),
    ]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, **settings}
    )
    results = list((tmp_path / "out").rglob("*results.json"))
    assert len(results) == 1, done.stdout + done.stderr
    scores = json.loads(results[0].read_text())["results"]["made_up"]
    assert scores["exact_match,none"] == pytest.approx(0.95)
    table.main([str(path) for path in records_below(tmp_path / "out", capsys)])
    name, label, score, *_ = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:]]
    assert (name, label, score) == ("made_up, exact_match (lmms-eval)", "DyVTE", "95.00")
    (record,) = read_records([tmp_path / "out"])
    assert record.num_samples == 20 and record.settings["batch_size"] == "4"
    assert sum(record.exit_layers.values()) == 20 and record.settings["harness"] == "lmms-eval 0.7.3"
    assert len(list(tmp_path.glob("reports.*.jsonl"))) == processes


def records_below(folder, capsys):
    harness.main([str(folder)])
    capsys.readouterr()
    return find_records([folder])

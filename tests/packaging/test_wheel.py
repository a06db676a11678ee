"""A wheel, built and installed outside the checkout: it attaches, and its commands run or name their extra."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.fixtures.scripts import script
from tests.packaging.test_dependencies import PROJECT, declared

ROOT = Path(__file__).parents[2]

ATTACH = """
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import dyvte
from dyvte import FixedExit, attach

vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                          image_size=28, patch_size=14)
text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                   num_key_value_heads=2, vocab_size=200, bos_token_id=1, eos_token_id=2, pad_token_id=0)
model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=199)).eval()
with attach(model, FixedExit(1)) as handle:
    model.generate(input_ids=torch.tensor([[1, 5, 199, 199, 199, 199, 7, 8]]),
                   attention_mask=torch.ones(1, 8, dtype=torch.long),
                   pixel_values=torch.zeros(1, 3, 28, 28), max_new_tokens=3, do_sample=False)
    assert handle.traces[-1].exit_layers == [1]
print(dyvte.__file__)
"""

# Runs commands in one process, packages of extras hidden or not, and writes how each ended.
HELP = """
import contextlib, importlib.metadata, io, json, runpy, sys
from importlib.machinery import PathFinder

lines, hidden = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
ends = {}
for line in lines:
    sys.argv = line.split()
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        ends[line] = ["returned", said.getvalue()]
    except SystemExit as end:
        ends[line] = [end.code, said.getvalue()]
    except BaseException as error:
        ends[line] = [type(error).__name__, str(error)]
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment that has the project from its wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in ("dyvte", "llava"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = {"check": True, "capture_output": True, "text": True, "env": environ}
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)], **quiet
    )
    (wheel,) = folder.glob("dyvte-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], **quiet)
    python = environment / "bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], **quiet)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # a line of a .pth file adds a folder, but not the .pth files in it: the checkout's own installation stays out
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def ends_of(python: Path, cwd: Path, lines: list[str], hidden: list[str]) -> dict[str, list]:
    """How each command line ends: its exit code, or the name of its exception, and what it says."""
    done = run(python, "-c", HELP, json.dumps(lines), json.dumps(hidden), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def helps() -> list[str]:
    return [f"{name} --help" for name in script("write_index").commands()]


def test_it_attaches(python, tmp_path):
    done = run(python, "-c", ATTACH, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(python.parents[1]))


def test_licence_version_and_data_are_in_it(python, tmp_path):
    done = run(
        python,
        "-c",
        "import importlib.metadata as m, importlib.resources as r\n"
        "files = [str(f) for f in m.files('dyvte')]\n"
        "print(m.version('dyvte'), any('licenses/LICENSE' in f for f in files), "
        "any('templates/page.html' in f for f in files), [e.name for e in m.entry_points(group='dyvte.models')])",
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["0.1.0", "True", "True", "['llava']"], done.stderr


def documented() -> dict[str, set[str]]:
    """Command line that shows the help -> flags that the pages show for it."""
    found: dict[str, set[str]] = {}
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.search(r"python -m ((?:dyvte|llava)\S*)(.*)", line.partition("#")[0])
                if command:
                    words = re.sub(r"[\[\]|]", " ", command[2].partition("[--")[0]).split()
                    first = words[0] if words and re.fullmatch(r"[a-z]\w*", words[0]) else ""
                    flags = {word for word in words if word.startswith("--")}
                    found.setdefault(" ".join([command[1], first, "--help"]), set()).update(flags)
    return found


def test_every_command_helps_and_knows_the_flags_in_the_pages(python, tmp_path):
    shown = documented()
    ends = ends_of(python, tmp_path, [*helps(), *shown], [])
    wrong = {line: end for line, end in ends.items() if end[0] not in (0, "returned") or not end[1]}
    assert not wrong
    unknown = {line: {flag for flag in flags if flag not in ends[line][1]} for line, flags in shown.items()}
    assert not {line: flags for line, flags in unknown.items() if flags}


def test_without_extras_every_command_helps_or_names_its_extra(python, tmp_path):
    import importlib.metadata

    extras = set().union(*(declared(name) for name in PROJECT["optional-dependencies"])) - declared(None)
    normal = {
        module: [name.lower().replace("_", "-") for name in names]
        for module, names in importlib.metadata.packages_distributions().items()
    }
    hidden = sorted(module for module, names in normal.items() if extras.intersection(names))
    assert {"pandas", "matplotlib", "sklearn", "peft"} <= set(hidden)
    ends = ends_of(python, tmp_path, helps(), hidden)
    wrong = {
        name: end
        for name, end in ends.items()
        if end[0] not in (0, "returned")
        and not (end[0] == "MissingExtra" and "pip install 'dyvte[" in end[1])
    }
    assert not wrong
    assert [name for name, end in ends.items() if end[0] == "MissingExtra"], "nothing was hidden"
    core = [line for line in ends if line.startswith(("dyvte.gates", "dyvte.engine", "llava."))]
    assert {line.split()[0] for line in core if ends[line][0] == "MissingExtra"} <= LLAVA_WITH_EXTRAS


LLAVA_WITH_EXTRAS = {
    "llava.serve.api",
    "llava.eval.eval_pope",
    "llava.eval.eval_science_qa",
    "llava.eval.eval_textvqa",
    "llava.eval.model_vqa_mmbench",
    "llava.eval.model_vqa_science",
}
"""LLaVA's command lines that score or read a benchmark (extra eval), or serve a model (extra serve)."""


def test_what_needs_a_checkout_says_so(python, tmp_path):
    done = run(python, "-m", "dyvte.benchmarks", "run", "gqa", "--model-path", "m", cwd=tmp_path)
    assert done.returncode == 1 and "checkout" in done.stderr and len(done.stderr.splitlines()) == 1

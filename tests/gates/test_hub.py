"""Gates pushed to a hub and pulled from it, by processes that know only its address."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from dyvte import ExitGates
from dyvte.gates.files import gates_digest
from dyvte.gates.hub import FILES, gates_folder, hub_name
from tests.fixtures.hub import Repository

HEAD = "import json, sys\nfrom dyvte import ExitGates\nfrom dyvte.gates.hub import gates_folder, hub_name\n"
TRY = """
def told(place, **how):
    try:
        return ExitGates.from_pretrained(place, **how).threshold
    except OSError as error:
        return f"{type(error).__name__}: {error}"
"""


def client(code, environment, folder):
    """What a process with this code prints, as JSON."""
    command = [sys.executable, "-c", HEAD + TRY + code]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def made(threshold=0.5, **origin):
    gates = ExitGates(3, 32, width=8)
    gates.calibration = {"threshold": threshold}
    gates.origin = replace(gates.origin, **origin)
    return gates


def test_a_model_that_is_not_on_the_hub(hub, tmp_path):
    """Of a name that is neither a folder nor on the hub, one line says so."""
    ask = """
from llava.model.checkpoint import read_config
try:
    read_config("lab/nothing")
except OSError as error:
    print(json.dumps(str(error)))
"""
    said = client(ask, hub.environment(tmp_path), tmp_path)
    assert said.startswith("lab/nothing is no folder here") and "valid model identifier" in said
    assert "\n" not in said


def published(hub, folder, name="lab/gates", private=False, branches=("main",)):
    """Put the files of a folder of gates on the hub without a client."""
    repository = hub.repositories[name] = Repository(private=private)
    files = {file: (folder / file).read_bytes() for file in FILES}
    return repository, [repository.commit(branch, files) for branch in branches]


def test_push_then_pull(hub, tmp_path):
    made(0.25, base_model="llava-tiny").save_pretrained(tmp_path / "local")
    environment = hub.environment(tmp_path / "home")
    push = """
gates = ExitGates.from_pretrained("local")
first = gates.push_to_hub("me/gates", private=True, base_model="lab/llava-tiny", commit_message="First")
gates.calibration = {"threshold": 0.75}
second = gates.push_to_hub("me/gates", revision="v2")
print(json.dumps([first.oid, second.oid]))
"""
    first, second = client(push, environment, tmp_path)
    repository = hub.repositories["me/gates"]
    assert repository.private and repository.branches == {"main": first, "v2": second}
    assert repository.commits[first].keys() == {".gitattributes", "README.md", *FILES}
    assert json.loads(repository.commits[first]["gates.json"])["base_model"] == "lab/llava-tiny"
    card = repository.commits[first]["README.md"].decode()
    assert "base_model: lab/llava-tiny" in card and 'from_pretrained("me/gates")' in card

    # a person adds to the card, and the gates are pushed again
    added = card.replace("---\n<!--", "license: mit\n---\nMy words.\n<!--", 1) + "\nMore of mine.\n"
    repository.commit("main", {"README.md": added.encode()})
    pull = """
out = {"main": told("me/gates"), "v2": told("me/gates", revision="v2"), "at": told("me/gates@v2")}
out["name"] = hub_name(gates_folder("me/gates@v2"))
out["nobody"] = told("nobody/nothing")
out["revision"] = told("me/gates@v3")
out["token"] = told("me/gates@main", token=False, cache_dir="other")
gates = ExitGates.from_pretrained("me/gates")
gates.calibration = {}
gates.push_to_hub("me/gates")
print(json.dumps(out))
"""
    out = client(pull, environment, tmp_path)
    assert (out["main"], out["v2"], out["at"]) == (0.25, 0.75, 0.75)
    assert out["name"] == f"me/gates@{second}"
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    assert "license: mit\n" in card and "My words." in card and card.endswith("More of mine.\n")
    assert "0.5 (the paper's; not calibrated)" in card
    told = "FileNotFoundError: {} is no folder here, and "
    assert out["nobody"].startswith(
        told.format("nobody/nothing") + "there is no repository nobody/nothing on http"
    )
    assert "if it is private, log in with hf auth login, or set HF_TOKEN" in out["token"]
    assert out["revision"].endswith(f"the repository me/gates on {hub.url} has no revision v3")
    assert not any("\n" in str(value) for value in out.values())


def test_the_cache_serves_without_the_hub(hub, tmp_path):
    made(0.25).save_pretrained(tmp_path / "local")
    published(hub, tmp_path / "local")
    environment = hub.environment(tmp_path / "home", token=None)
    assert client('print(json.dumps(told("lab/gates")))', environment, tmp_path) == 0.25
    count = len(hub.requests)
    ask = """
print(json.dumps([told("lab/gates"), told("lab/gates@v3"), told("lab/gates", local_files_only=True)]))
"""
    known, unknown, local = client(ask, {**environment, "HF_HUB_OFFLINE": "1"}, tmp_path)
    assert known == local == 0.25 and len(hub.requests) == count
    assert unknown.startswith(
        "FileNotFoundError: lab/gates@v3 is no folder here, and gates lab/gates@v3 are not in "
    )
    assert unknown.endswith("(HF_HUB_OFFLINE is set)")
    hub.shutdown()
    hub.server_close()
    known, unknown, _ = client(ask, environment, tmp_path)
    assert known == 0.25 and unknown.endswith(f"({hub.url} was not reached)") and "\n" not in unknown
    push = """
try:
    ExitGates.from_pretrained("local").push_to_hub("lab/gates")
except OSError as error:
    print(json.dumps(str(error)))
"""
    told = client(push, environment, tmp_path)
    assert told.startswith(f"{hub.url}/lab/gates: ") and "\n" not in told


def test_what_is_looked_for_where(hub, tmp_path):
    """A folder wins, whole checkpoints are not downloaded to look for gates, and pushing needs a token."""
    made(0.25).save_pretrained(tmp_path / "lab/gates")
    published(hub, tmp_path / "lab/gates", "lab/gates")
    hub.repositories["lab/model"] = Repository(private=False)
    hub.repositories["lab/model"].commit("main", {"config.json": b"{}", "model.safetensors": b"large"})
    code = """
out = [told("lab/gates"), told("lab/model")]
try:
    ExitGates.from_pretrained("lab/gates").push_to_hub("lab/new")
except OSError as error:
    out.append(str(error))
print(json.dumps(out))
"""
    local, whole, pushed = client(code, hub.environment(tmp_path / "home", token=None), tmp_path)
    assert local == 0.25 and not any("/lab/gates" in request for request in hub.requests)
    assert (
        "holds no gates (gates.safetensors and gates.json missing)" in whole
        and "hf download lab/model" in whole
    )
    assert not any("resolve" in request for request in hub.requests)
    assert pushed.startswith(f"{hub.url}/lab/new: ") and "\n" not in pushed
    assert "lab/new" not in hub.repositories


def test_command_lines_take_a_name(hub, checkpoint, picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    made(0.25).save_pretrained(tmp_path / "local")
    repository, (commit,) = published(hub, tmp_path / "local", private=True, branches=("v1",))
    repository.branches["main"] = commit
    environment = hub.environment(tmp_path / "home")
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"question_id": 1, "image": "picture.png", "text": "What is it?"}) + "\n"
    )
    place = ["--model-path", str(checkpoint), "--image-folder", str(tmp_path), "--device", "cpu"]
    place += ["--conv-mode", "v1", "--gates", "lab/gates@v1", "--max_new_tokens", "2"]
    code = f"""
import contextlib, io
from dyvte import cli
from dyvte.engine import calibrate
from dyvte.gates import hub
from llava.eval.model_vqa_loader import build_parser, eval_model
place = {place!r}
cli.run(build_parser(), eval_model, [*place, "--question-file", "q.jsonl", "--answers-file", "a.jsonl"])
out = []
for main, words in (
    (calibrate.main, [*place, "--data-path", "q.jsonl", "--budget", "0.5"]),
    (hub.main, ["lab/other"]),
):
    try:
        main(words)
    except SystemExit as error:
        out.append(str(error))
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    hub.main(["lab/gates@v1"])
print(json.dumps([*out, printed.getvalue()]))
"""
    in_place, missing, found = client(code, environment, tmp_path)
    run = json.loads((tmp_path / "a.jsonl").read_text())["metadata"]["run"]
    assert run["gates_name"] == f"lab/gates@{commit}"
    assert run["gates_sha256"] == gates_digest(tmp_path / "local")
    assert (
        f"lab/gates@{commit} is on the hub, where nothing is changed in place: name a folder with" in in_place
    )
    assert missing.startswith(
        "python -m dyvte.gates.hub: lab/other is no folder here, and there is no repository"
    )
    assert found.endswith(f"models--lab--gates/snapshots/{commit}\n")


@pytest.mark.parametrize("place", ["/a/b", "./a", "a/b/c", "gates", "../gates", "a/b@", "~/gates"])
def test_paths_are_no_names(place, monkeypatch):
    """Nothing is asked of the hub for what cannot be a name there."""
    monkeypatch.setattr("dyvte.gates.hub.snapshot_download", None)
    assert gates_folder(place).name == place.rpartition("/")[2]
    assert hub_name(place) is None


def test_two_revisions_are_refused():
    with pytest.raises(ValueError, match="second revision, v2"):
        gates_folder("lab/gates@v1", revision="v2")

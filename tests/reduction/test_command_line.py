"""Methods by name: flags, the shell's settings, and what records call them."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dyvte import FixedExit, LearnedExit
from dyvte.decoding.attach import handle_of
from dyvte.engine import options
from dyvte.methods import METHODS, OWN_FLAGS, make_policy, title
from dyvte.reduction import VTW, Combine, FastV, Pooling, StabilityExit, ToMe
from dyvte.report import compare
from llava import chat_model

COMMON = Path(__file__).parents[2] / "scripts/v1_5/eval/common.sh"


def test_settings_are_parsed_by_the_fields_types():
    assert make_policy(["fastv"], ["k=3", "r=0.25"]) == FastV(k=3, r=0.25)
    settings = ["last_layer=none", "tome.r=4", "grid=24"]
    assert make_policy(["tome", "pooling"], settings) == Combine((ToMe(r=4), Pooling(grid=24)))
    assert make_policy(["stability"], ["jump=0.9"]) == StabilityExit(jump=0.9)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OWN_FLAGS])
def test_every_listed_method_has_defaults_and_says_its_paper(name):
    method = METHODS[name]
    assert make_policy([name]) == method.load()()
    assert method.paper in (importlib.import_module(method.policy.split(":")[0]).__doc__ or "")
    assert title(name, {"method_config": "k=3 r=0.5"}) == f"{method.title} (k=3, r=0.5)"


def test_titles_tell_records_apart():
    assert title("none", {}) == "Baseline" and title("dyvte", {"threshold": "0.5"}) == "DyVTE"
    assert title("dyvte+fastv", {"threshold": "0.9"}) == "DyVTE, threshold 0.9 + FastV"
    assert title("fixed", {"exit_layer": "7"}) == "Exit after layer 7"


def test_what_a_method_needs_is_said():
    with pytest.raises(ValueError, match="dyvte needs gates"):
        make_policy(["dyvte"])
    with pytest.raises(ValueError, match="method fixed[+]tome needs --exit-layer"):
        make_policy(["fixed", "tome"])


def test_names_are_checked_on_the_command_line():
    python = [sys.executable, "-m", "dyvte.methods"]
    listed = subprocess.run(python, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(METHODS)
    assert subprocess.run([*python, "check", "dyvte+fastv"]).returncode == 0
    bad = subprocess.run([*python, "check", "magic"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("'magic' is not one of none, dyvte")


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["fastv"], ["k"], "key=value, got 'k'"),
        (["fastv"], ["k="], "key=value"),
        (["fastv"], ["q=1"], "unknown setting 'q': fastv has k=2, r=0.5"),
        (["fastv"], ["k=two"], "fastv's k must be a whole number, got 'two'"),
        (["fastv"], ["k=1.5"], "whole number"),
        (["fastv"], ["r=half"], "r must be a number"),
        (["fastv"], ["k=1", "fastv.k=2"], "k is given twice"),
        (["fastv", "tome"], ["r=1"], "unclear: write fastv.r or tome.r"),
        (["fastv"], ["tome.r=1"], "unknown setting 'tome.r'"),
        (["fastv"], ["r=7"], r"\[0, 1\]"),
        ([], ["r=1"], "none of the methods has settings"),
    ],
)
def test_bad_settings_are_said(names, settings, message):
    with pytest.raises(ValueError, match=message):
        make_policy(names, settings)


@pytest.mark.parametrize("name", ["magic", "fastv+magic", "fastv+fastv", "none+fastv", ""])
def test_bad_methods_are_said(name, capsys):
    parser = argparse.ArgumentParser()
    options.add_method_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--method", name])
    assert "fastv" in capsys.readouterr().err


def open_as(monkeypatch, llava):
    """Make every checkpoint load as this model."""
    loaded = SimpleNamespace(eos_token_id=2), llava, object(), 512
    monkeypatch.setattr(chat_model, "load_pretrained_model", lambda *a, **k: loaded)
    for digest in ("checkpoint_digest", "gates_digest"):
        monkeypatch.setattr(chat_model, digest, lambda *a: "0" * 64)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--method fastv --method-config k=1 r=0.75", FastV(k=1, r=0.75)),
        ("--method vtw --method-config k=2", VTW(2)),
        ("--method fixed+tome --exit-layer 2 --method-config r=1", Combine((FixedExit(2), ToMe(r=1)))),
        ("--method fixed --exit-layer 1", FixedExit(1)),
    ],
)
def test_flags_make_the_policy(llava, monkeypatch, flags, expected):
    parser = argparse.ArgumentParser()
    options.add_method_arguments(parser)
    open_as(monkeypatch, llava)
    args = parser.parse_args(flags.split(), argparse.Namespace(model_path="llava-x", model_base=None))
    handle = options.open_answerer(args, "v1").handle
    assert handle is not None
    handle.detach()
    assert handle.policy == expected


def test_gates_and_a_method_act_together(llava, monkeypatch, gates):
    from dyvte import attach

    open_as(monkeypatch, llava)
    parser = argparse.ArgumentParser()
    options.add_method_arguments(parser)
    flags = ["--method", "dyvte+fastv", "--method-config", "k=1 r=0.25", "--threshold", "0.7"]
    args = parser.parse_args(flags, argparse.Namespace(model_path="llava-x", model_base=None))
    with pytest.raises(ValueError, match="needs gates"):
        options.open_answerer(args, "v1")
    llava.exit_handle = attach(llava, LearnedExit(gates))
    try:
        policy = options.open_answerer(args, "v1").handle.policy
    finally:
        handle_of(llava).detach()
        del llava.exit_handle
    learned, fastv = policy.policies
    assert learned.gates is gates and learned.threshold == 0.7 and fastv == FastV(k=1, r=0.25)
    args.method_config = ["k=9"]
    with pytest.raises(ValueError, match=r"k must be one of 1\.\.3"):
        try:
            options.open_answerer(argparse.Namespace(**{**vars(args), "method": "fastv"}), "v1")
        finally:
            assert handle_of(llava) is None


def shell(**settings):
    """What common.sh makes of settings: flags, settings of the record, and the folder's suffix."""
    script = f"source {COMMON}; method_arguments; printf '%s\\n' \"${{method_flags[@]}}\" --- "
    script += '"${method_settings[@]}" --- "$variant"'
    environment = {"PATH": os.environ["PATH"], **settings}
    done = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True)
    return done, [part.strip().splitlines() for part in done.stdout.split("---\n")]


def test_shell_passes_method_and_settings_on():
    done, (flags, kept, variant) = shell(METHOD="fixed+fastv", METHOD_CONFIG="k=3 r=0.5", EXIT_LAYER="7")
    assert done.returncode == 0, done.stderr
    assert flags == ["--method", "fixed+fastv", "--method-config", "k=3 r=0.5", "--exit-layer", "7"]
    assert kept[-2:] == ["exit_layer=7", "method_config=k=3 r=0.5"] and variant == ["-exit7-fastv-k-3-r-0.5"]
    done, (flags, kept, variant) = shell(METHOD="none")
    assert flags == ["--method", "none"] and not variant and not any("config" in entry for entry in kept)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OWN_FLAGS])
def test_every_method_has_its_place_in_shell_and_tables(name):
    done, (flags, _, variant) = shell(METHOD=name)
    assert done.returncode == 0 and flags == ["--method", name] and variant == [f"-{name}"]


def test_shell_refuses_unknown_methods():
    done, _ = shell(METHOD="dyvte+magic")
    assert done.returncode == 1 and "is not one of none, dyvte" in done.stderr


@pytest.mark.parametrize(
    ("method", "settings", "label"),
    [
        ("fastv", {"method_config": "k=3 r=0.5"}, "FastV (k=3, r=0.5)"),
        ("dyvte+fastv", {"threshold": "0.5"}, "DyVTE + FastV"),
        ("dyvte+tome", {"threshold": "0.7", "method_config": "r=8"}, "DyVTE, threshold 0.7 + ToMe (r=8)"),
        ("fixed+pooling", {"exit_layer": "4"}, "Exit after layer 4 + Pooling"),
    ],
)
def test_labels(method, settings, label):
    assert compare.label_of(SimpleNamespace(method=method, settings=settings)) == label  # type: ignore[arg-type]

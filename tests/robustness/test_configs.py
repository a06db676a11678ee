"""Broken JSON files of gates, models, tokenizers and image processors: the model answers, or file and field are
told.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dyvte import ExitGates
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.questions import Question
from dyvte.gates.origin import Origin, TrainedOn
from dyvte.gates.store import Manifest
from tests.robustness.outcome import FEW, MANY, right_or_told

FEW_MODELS, MANY_MODELS = settings(FEW, max_examples=30), settings(MANY, max_examples=3000)
ABSENT = "..."
"""Stands for a field that is taken away."""
LARGE = 1099511627776

scalars = st.sampled_from(
    (None, True, False, -1, 0, 1, 3, 64, LARGE, -LARGE, 1.5, float("nan"), float("inf"), "", "x", "4", ABSENT)
)
values = (
    scalars
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.sampled_from(("threshold", "x")), scalars, max_size=2)
)
GATES_FIELDS = (
    "format", "version", "num_layers", "hidden_size", "width", "states", "kind", "rank", "gated_layers", "base_model",
    "base_sha256", "model_family", "trained_on", "calibration",
)  # fmt: skip
MODEL_FIELDS = {
    "config.json": (
        "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
        "hidden_act", "attention_bias", "tie_word_embeddings", "dtype", "torch_dtype", "eos_token_id", "bos_token_id",
        "pad_token_id", "conversation_template", "tokenizer_model_max_length", "tokenizer_padding_side",
        "max_sequence_length", "mm_vision_tower", "mm_hidden_size", "mm_projector_type", "mm_vision_select_layer",
        "mm_vision_select_feature", "mm_patch_merge_type", "mm_use_im_start_end", "mm_use_im_patch_token",
        "image_aspect_ratio", "image_grid_pinpoints", "quantization_config", "layer_types", "sliding_window",
        "auto_map", "unfreeze_mm_vision_tower", "s2", "vision_config", "text_config",
    ),
    "generation_config.json": (
        "eos_token_id", "pad_token_id", "bos_token_id", "max_length", "max_new_tokens", "num_beams", "temperature",
        "do_sample", "repetition_penalty", "no_repeat_ngram_size", "cache_implementation", "num_return_sequences",
        "stop_strings", "bad_words_ids", "min_length", "transformers_version",
    ),
    "tokenizer_config.json": (
        "tokenizer_class", "add_bos_token", "add_eos_token", "bos_token", "eos_token", "unk_token", "pad_token",
        "legacy", "padding_side", "model_max_length", "added_tokens_decoder", "auto_map", "chat_template",
    ),
    "vision_tower/config.json": (
        "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "image_size", "patch_size", "num_channels", "hidden_act", "layer_norm_eps", "projection_dim", "vision_config",
    ),
    "vision_tower/preprocessor_config.json": (
        "size", "crop_size", "image_mean", "image_std", "do_resize", "do_center_crop", "do_rescale", "do_normalize",
        "rescale_factor", "resample", "image_processor_type", "do_convert_rgb",
    ),
}  # fmt: skip
FIELDS = [(file, field) for file, fields in MODEL_FIELDS.items() for field in fields]


def changed(path: Path, field: str, value) -> None:
    described = json.loads(path.read_text()) if path.is_file() else {}
    described[field] = value
    if value == ABSENT:
        del described[field]
    path.write_text(json.dumps(described))


@pytest.fixture(scope="module")
def gates_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    gates = ExitGates(3, 32, width=8)
    gates.calibration = {"threshold": 0.7}
    gates.origin = Origin("llava", "ab" * 32, "llava_llama", TrainedOn("cd" * 32, 7))
    gates.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, checkpoint):
    """A function: a new copy of the model."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("work") / "llava-tiny"
        shutil.copytree(checkpoint, folder)
        return folder

    return make


def check_gates(gates_folder: Path, field: str, value) -> None:
    path = gates_folder / "gates.json"
    whole = path.read_text()
    try:
        changed(path, field, value)
        with right_or_told("gates.json"):
            gates = ExitGates.from_pretrained(gates_folder)
            assert gates.num_layers == 3 and gates.hidden_size == 32 and 0 <= gates.threshold <= 1
    finally:
        path.write_text(whole)


@FEW
@given(st.sampled_from(GATES_FIELDS), values)
def test_descriptions_of_gates(gates_folder, field, value):
    check_gates(gates_folder, field, value)


@pytest.mark.slow
@MANY
@given(st.sampled_from(GATES_FIELDS), values)
def test_descriptions_of_gates_by_the_thousand(gates_folder, field, value):
    check_gates(gates_folder, field, value)


def check_model(fresh, place: tuple[str, str], value) -> None:
    folder = fresh()
    file, field = place
    changed(folder / file, field, value)
    with right_or_told(str(folder), field, field.removeprefix("mm_")):
        chat = open_model(ModelOptions(str(folder), template="v1", device="cpu"))
        if chat.handle is not None:
            question = Question("What colour is the ball?", [Image.new("RGB", (40, 24))])
            batch = chat.batch([chat.prompt(question)], question.images)
            ids = chat.generate(batch, Generation(max_new_tokens=2))
            assert ids.shape[0] == 1 and isinstance(chat.decode(ids)[0], str)


@FEW_MODELS
@given(st.sampled_from(FIELDS), values)
def test_fields_of_models(fresh, place, value):
    check_model(fresh, place, value)


@pytest.mark.slow
@MANY_MODELS
@given(st.sampled_from(FIELDS), values)
def test_fields_of_models_by_the_thousand(fresh, place, value):
    check_model(fresh, place, value)


FILES = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "vision_tower/preprocessor_config.json",
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"5", b"{", b"\xff\xfe{", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"]
)
def test_files_that_hold_no_object(file, content, fresh):
    folder = fresh()
    (folder / file).write_bytes(content)
    with right_or_told(str(folder)):
        open_model(ModelOptions(str(folder), template="v1", device="cpu"))
        pytest.fail("it was loaded")


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        (
            "config.json",
            "num_hidden_layers",
            LARGE,
            "config.json: num_hidden_layers is 1099511627776; it must be",
        ),
        ("config.json", "vocab_size", 10**8, "config.json asks for .* weights .* its files hold"),
        ("config.json", "hidden_size", "32", "config.json: hidden_size is '32'; it must be a whole number"),
        (
            "config.json",
            "image_aspect_ratio",
            "padd",
            "config.json: image_aspect_ratio is 'padd'; .*anyres_max_N",
        ),
        ("config.json", "mm_vision_tower", ["a"], "config.json: mm_vision_tower is"),
        (
            "config.json",
            "mm_vision_select_layer",
            None,
            "config.json: mm_vision_select_layer is None; it must be",
        ),
        (
            "vision_tower/preprocessor_config.json",
            "crop_size",
            {"height": LARGE},
            "preprocessor_config.json: crop_size",
        ),
        (
            "vision_tower/preprocessor_config.json",
            "crop_size",
            1,
            "preprocessor_config.json: crop_size is 1x1, .*28x28",
        ),
        ("vision_tower/preprocessor_config.json", "size", -3, "preprocessor_config.json: size is -3"),
        ("vision_tower/config.json", "num_hidden_layers", -1, "config.json: num_hidden_layers is -1"),
    ],
)
def test_what_is_told(file, field, value, message, fresh):
    folder = fresh()
    changed(folder / file, field, value)
    with pytest.raises(ValueError, match=f"{folder}.*{message}"):
        open_model(ModelOptions(str(folder), template="v1", device="cpu"))


@pytest.mark.parametrize("field", ["num_layers", "states", "width"])
@pytest.mark.parametrize("value", [LARGE, -1, [], None, "3", {}])
def test_what_is_told_of_gates(field, value, gates_folder, tmp_path):
    folder = tmp_path / "gates"
    shutil.copytree(gates_folder, folder)
    changed(folder / "gates.json", field, value)
    with pytest.raises(ValueError, match=f"gates.json: {field} is .*; it must be"):
        ExitGates.from_pretrained(folder)


@pytest.mark.parametrize(
    "field", ["model", "data", "settings", "states", "num_layers", "samples", "shard_size"]
)
@pytest.mark.parametrize("value", [LARGE**2, -1, [], None, ABSENT, [[]]])
def test_manifests_of_stores(field, value, tmp_path):
    Manifest("m", "d", {"a": 1}, ["mean_text"], "float32", 3, 32, 7, 2).write(tmp_path)
    changed(tmp_path / "manifest.json", field, value)
    with pytest.raises(ValueError, match=f"manifest.json: {field} .*it must be"):
        Manifest.read(tmp_path)


EVIL = """
from pathlib import Path
Path("{mark}").touch()
from transformers import LlamaConfig
class Evil(LlamaConfig):
    model_type = "evil"
"""


@pytest.mark.parametrize("model_type", ["evil", "llama", "llava_llama"])
def test_code_of_a_checkpoint_never_runs(model_type, fresh, base, tmp_path, monkeypatch):
    """Nobody is asked either, also where an answer would be read."""
    mark = tmp_path / "ran"
    folder = fresh()
    if model_type != "llava_llama":
        folder = tmp_path / "model"
        shutil.copytree(base, folder)
    (folder / "evil.py").write_text(EVIL.format(mark=mark))
    changed(folder / "config.json", "model_type", model_type)
    classes = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", None],
    }
    for file in ("config.json", "tokenizer_config.json"):
        changed(folder / file, "auto_map", classes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with right_or_told(str(folder)):
        open_model(ModelOptions(str(folder), template="v1", device="cpu"))
    assert not mark.exists()

"""Tiny random checkpoints of transformers' own classes, with real processors, through all that asks a model."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from dyvte import ExitGates, FixedExit, NoExit
from dyvte.engine import calibrate
from dyvte.engine.answer import Answerer
from dyvte.engine.chat_format import ChatFormat, check_pairs, turns_of
from dyvte.engine.model import DefaultTemplate, Generation, ModelOptions
from dyvte.engine.openers import LLAVA, TRANSFORMERS, family_of, open_model
from dyvte.engine.processor_model import load_model
from dyvte.engine.questions import JSON_LINES, Question
from dyvte.engine.run import answer_items, prepared_batches, question_parser
from dyvte.families import base
from dyvte.families.base import adapter_for
from dyvte.gates import store_states
from dyvte.gates.origin import Origin
from dyvte.gates.supervision import IGNORE_INDEX, supervise
from dyvte.gates.training import GateModel, GateTrainer
from llava.eval import run_llava
from llava.serve import cli
from llava.train.arguments import parse_arguments
from llava.train.train import build_gate_trainer
from tests.families.cases import CASES

FAMILIES = ("llava_hf", "llava_next", "qwen")
LAYERS, WIDTH = 4, 48


@pytest.fixture(params=FAMILIES)
def folder_of(request):
    """A checkpoint of each family."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def chat(folder_of):
    return open_model(ModelOptions(str(folder_of)))


@pytest.fixture
def pictures():
    """Two pictures that differ in size, shape and content."""
    round_one = Image.radial_gradient("L").resize((40, 24)).convert("RGB")
    return [round_one, Image.new("RGB", (20, 30), (200, 10, 10))]


@pytest.fixture
def questions(pictures):
    """One picture, two pictures in the text, and none."""
    both = Question("Is <image> larger than <image>, or not at all?", pictures)
    return [Question("What colour is it?", pictures[:1]), both, Question("How many digits are there?")]


@pytest.fixture
def data(tmp_path, pictures):
    """Pictures, a file of questions about them, and the same as instruction data."""
    rows, records = [], []
    for index in range(5):
        pictures[index % 2].rotate(20 * index).save(tmp_path / f"{index}.png")
        text, image = "what is it" + " please" * index, f"{index}.png"
        rows.append({"question_id": index, "image": image, "text": text})
        turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "a red ball"}]
        records.append({"id": index, "image": image, "conversations": turns})
    rows.append({"question_id": 5, "image": ["0.png", "1.png"], "text": "<image> or <image>"})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sample.json").write_text(json.dumps(records))
    return tmp_path


def make_gates(folder, **origin):
    torch.manual_seed(3)
    gates = ExitGates(LAYERS, WIDTH, width=16)
    for parameter in gates.parameters():
        parameter.data.mul_(5)
    gates.origin = Origin(**origin)
    gates.save_pretrained(folder)
    return folder


def answers_of(folder, data, *flags):
    given = ["--model-path", folder, "--image-folder", data, "--question-file", data / "questions.jsonl"]
    given += ["--answers-file", data / "answers.jsonl", "--temperature", 0, "--max_new_tokens", 4, *flags]
    args = question_parser(JSON_LINES).parse_args([str(word) for word in given])
    answer_items(args, JSON_LINES.read(args))
    return [json.loads(line) for line in (data / "answers.jsonl").read_text().splitlines()]


def test_configs_decide_who_opens_a_model(llava_hf, llava_next, qwen_folder, checkpoint, base, tmp_path):
    for folder in (llava_hf, llava_next, qwen_folder):
        assert family_of(str(folder)) == TRANSFORMERS
    for folder in (checkpoint, base, tmp_path / "absent"):
        assert family_of(str(folder)) == LLAVA
    assert family_of(str(llava_hf), str(base)) == LLAVA
    for model_type, opener in (("fuyu", TRANSFORMERS), ("phi3_v", TRANSFORMERS), ("llama", LLAVA)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))  # no vision_config
        assert family_of(str(tmp_path)) == opener


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_the_part_of_an_omni_checkpoint_that_sees_is_loaded(kind, tmp_path):
    model = CASES[f"{kind}_thinker"].build()
    model.save_pretrained(tmp_path)
    weights = {f"thinker.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file({**weights, "talker.scale": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    fields = {"model_type": kind, "thinker_config": json.loads((tmp_path / "config.json").read_text())}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert family_of(str(tmp_path)) == TRANSFORMERS
    loaded = load_model(ModelOptions(str(tmp_path)), fields)
    assert adapter_for(loaded) is adapter_for(model)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_prompts_are_llavas_words_in_the_familys_template(chat, questions):
    place = chat.form.placeholder
    first, both, text = (chat.prompt(question) for question in questions)
    assert first.count(place) == 1 and first.index(place) < first.index("What colour is it?<|im_end|>")
    assert both.count(place) == 2 and both.index("Is ") < both.index(place) < both.index(" larger than ")
    assert place not in text and text.endswith("<|im_start|>assistant\n")
    again = chat.prompt(questions[2], [(questions[0], "red")])
    assert again.startswith(first + "red<|im_end|>\n") and again.endswith(text)
    with pytest.raises(ValueError, match="places for 2 images, but comes with 1"):
        chat.prompt(Question("<image> <image>", questions[0].images))


@pytest.mark.parametrize("policy", [NoExit(), FixedExit(1)], ids=["none", "fixed"])
def test_batches_equal_one_by_one_and_stock(chat, questions, policy):
    answerer = Answerer(chat, Generation(max_new_tokens=5))
    chat.handle.policy = policy
    together = answerer.ask(questions)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = answerer.ask([question])
        assert alone.text == answer.text
        assert alone.report.visual_tokens == answer.report.visual_tokens
        assert answer.report.exit_layer == (1 if isinstance(policy, FixedExit) and question.images else None)
    assert [bool(answer.report.visual_tokens) for answer in together] == [True, True, False]
    if isinstance(policy, NoExit):
        batch = answerer.batch(questions[:1])
        ours = chat.generate(batch, answerer.generation)
        chat.handle.detach()
        stock = chat.model.generate(**batch.inputs(), do_sample=False, max_new_tokens=5)
        assert torch.equal(stock[:, batch.input_ids.shape[1] :], ours)


def test_labels_of_generated_answers_equal_separate_runs(chat, questions):
    """What :meth:`embed` captures (several axes of positions under M-RoPE) labels as real exits do."""
    answerer = Answerer(chat, Generation(max_new_tokens=5))
    supervision, _ = calibrate.supervise_own_answers(answerer, answerer.batch(questions[:2]))
    batch = chat.place(answerer.batch(questions[:2]))
    answers = chat.generate(batch, answerer.generation)
    mask = torch.ones_like(answers, dtype=torch.bool)
    embedded = chat.embed(batch, answers, mask)
    assert (embedded.position_ids is not None) == (chat.model.config.model_type == "qwen2_vl")
    found = supervise(chat.model, **vars(embedded))
    assert torch.equal(found.agreement, supervision.agreement)
    ids = torch.cat([batch.input_ids, answers], 1)
    whole = {"input_ids": ids, "attention_mask": torch.cat([batch.attention_mask, mask], 1), **batch.images}
    if "mm_token_type_ids" in whole:
        types = whole["mm_token_type_ids"]
        whole["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answers, dtype=types.dtype)], 1)
    for layer in range(LAYERS):
        chat.handle.policy = FixedExit(layer)
        logits = chat.model(**whole, use_cache=False).logits[:, batch.input_ids.shape[1] - 1 : -1]
        agreement = (logits.argmax(-1) == answers).double().mean(1)
        torch.testing.assert_close(found.agreement[layer], agreement)
        losses = torch.nn.functional.cross_entropy(logits.double().transpose(1, 2), answers, reduction="none")
        torch.testing.assert_close(found.loss_with_exit[layer], losses.mean(1), rtol=1e-4, atol=1e-4)


def test_files_of_questions_are_answered_and_runs_resume(folder_of, data):
    whole = answers_of(folder_of, data, "--method", "fixed", "--exit-layer", 1, "--batch-size", 4)
    assert {answer["metadata"]["exit_layer"] for answer in whole} == {1} and len(whole) == 6
    run = whole[0]["metadata"]["run"]
    assert (
        run["template"].startswith("its own (")
        and run["processor"]
        and run["family"] in folder_of.name.replace("-", "_")
    )
    lines = (data / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (data / "answers.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    again = answers_of(folder_of, data, "--method", "fixed", "--exit-layer", 1, "--batch-size", 4)
    assert [answer["answer_id"] for answer in again[:2]] == [answer["answer_id"] for answer in whole[:2]]
    assert [answer["text"] for answer in again] == [answer["text"] for answer in whole]


def test_what_calibration_foresees_happens(folder_of, data):
    gates = make_gates(data / "gates")
    given = ["--model-path", folder_of, "--gates", gates, "--data-path", data / "sample.json"]
    given += ["--image-folder", data, "--max_new_tokens", 4, "--batch-size", 4, "--budget", 0.9]
    result = calibrate.calibrate(calibrate.build_parser().parse_args([str(word) for word in given]))
    items = calibrate.read_items(str(data / "sample.json"))
    answered, costs = [], []
    for options in (ModelOptions(str(folder_of)), ModelOptions(str(folder_of), gates=str(gates))):
        chat = open_model(options)
        batches = [batch for _, batch in prepared_batches(items, 1, chat, str(data))]
        answered.append([chat.generate(batch, Generation(max_new_tokens=4)).tolist() for batch in batches])
        costs = [trace.report()[0].tflops for trace in chat.handle.traces]
    # ids, not texts: a random model writes bytes that are no text
    assert result.changed * 5 == sum(one != other for one, other in zip(*answered, strict=True))
    assert result.cost == pytest.approx(sum(costs) / 5)


def test_instruction_data_is_labelled_at_answers_alone(chat, data):
    dataset, collator = chat.training_data(str(data / "sample.json"), str(data))
    assert dataset.modality_lengths[:2] == [7, 8]
    batch = collator([dataset[index] for index in (0, 4)])
    for row, ids in zip(batch["labels"], batch["input_ids"], strict=True):
        labelled = row != IGNORE_INDEX
        assert torch.equal(row[labelled], ids[labelled])
        assert chat.tokenizer.decode(row[labelled]) == "a red ball<|im_end|>"
    embedded = chat.embed_samples(batch)
    assert len(supervise(chat.model, **vars(embedded)).samples) == 2
    # the same prompt and answer as generation would have them
    records = dataset.records
    image = Image.open(data / "4.png").convert("RGB")
    ((question, _),) = turns_of(records[4], [image])
    prompt = chat.batch([chat.prompt(question)], [image])
    width = prompt.input_ids.shape[1]
    ids = batch["input_ids"][1][batch["input_ids"][1] != chat.tokenizer.pad_token_id]
    assert torch.equal(ids[:width], prompt.input_ids[0])


def test_several_turns_and_long_samples(chat, data, pictures):
    turns = [(Question("one", pictures[:1]), "first answer"), (Question("two"), "second")]
    sample = chat.form.sample(turns, 2048)
    _, collator = chat.training_data(str(data / "sample.json"), str(data))
    batch = collator([sample])
    labels = batch["labels"][0]
    assert chat.tokenizer.decode(labels[labels != IGNORE_INDEX]) == "first answer<|im_end|>second<|im_end|>"
    length = len(chat.form.tokens(sample.text))
    short = collator([chat.form.sample(turns, length - 3)])
    labels = short["labels"][0]
    assert "second" not in chat.tokenizer.decode(labels[labels != IGNORE_INDEX])
    assert short["attention_mask"].sum() == batch["attention_mask"].sum() - 3
    chat.embed_samples(short)
    with pytest.raises(ValueError, match="cutting them would cut an image"):
        chat.form.sample(turns, 3)
    with pytest.raises(ValueError, match="an image follows an answer"):
        chat.form.sample([(Question("one"), "a"), turns[0]], 2048)


def test_stores_and_gate_training(folder_of, data):
    given = ["--model-path", folder_of, "--data-path", data / "sample.json", "--image-folder", data]
    given += ["--output", data / "store", "--device", "cpu", "--batch-size", "2"]
    store_states.main([str(word) for word in given])
    manifest = json.loads((data / "store" / "manifest.json").read_text())
    assert manifest["settings"]["version"].startswith("its own (") and manifest["settings"]["processor"]
    given = ["--model_name_or_path", folder_of, "--data_path", data / "sample.json", "--image_folder", data]
    given += [
        "--tune_visual_gates",
        "True",
        "--output_dir",
        data / "out",
        "--max_steps",
        "2",
        "--report_to",
        "none",
    ]
    given += ["--per_device_train_batch_size", "2", "--use_cpu", "True", "--group_by_modality_length", "True"]
    trainer = build_gate_trainer(parse_arguments([str(word) for word in given]), None)
    assert isinstance(trainer, GateTrainer) and isinstance(trainer.model, GateModel)
    before = [parameter.clone() for parameter in trainer.model.gates.parameters()]
    trainer.train_to_the_end()
    assert any(not torch.equal(*pair) for pair in zip(before, trainer.model.gates.parameters(), strict=True))
    trainer.save_model()
    saved = ExitGates.from_pretrained(data / "out")
    assert saved.origin.model_family == json.loads((folder_of / "config.json").read_text())["model_type"]
    asked = answers_of(folder_of, data, "--gates", data / "out")
    assert len(asked) == 6 and asked[0]["metadata"]["run"]["gates_sha256"]


def test_command_lines_ask(folder_of, data, capsys, monkeypatch):
    given = ["--model-path", folder_of, "--image-file", data / "0.png", "--query", "what is it"]
    given += ["--method", "fixed", "--exit-layer", 1, "--temperature", 0, "--max_new_tokens", 3]
    answer = run_llava.eval_model(run_llava.build_parser().parse_args([str(word) for word in given]))
    assert answer.report.exit_layer == 1 and "exit: after layer 1" in capsys.readouterr().out
    said = iter(["what is it", "and now", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    given = [
        "--model-path",
        folder_of,
        "--image-file",
        data / "0.png",
        "--temperature",
        0,
        "--max-new-tokens",
        3,
    ]
    cli.main(cli.build_parser().parse_args([str(word) for word in [*given, "--debug"]]))
    shown = capsys.readouterr().out
    assert shown.count("ASSISTANT: ") == 2 and "and now<|im_end|>" in shown and "bye" in shown


def test_a_template_that_was_asked_for_is_an_error(folder_of):
    open_model(ModelOptions(str(folder_of), template=DefaultTemplate("vicuna_v1")))
    with pytest.raises(ValueError, match="follow its own chat template: leave the template 'vicuna_v1' out"):
        open_model(ModelOptions(str(folder_of), template="vicuna_v1"))


def changed(folder, tmp_path, **fields):
    """A copy without weights, so that only an error found before they are loaded can be the one that is raised."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **fields}))
    return copy


def test_families_without_exits_are_refused_before_weights_are_loaded(llava_hf, tmp_path):
    folder = changed(llava_hf, tmp_path, model_type="mllama")
    with pytest.raises(ValueError, match="'mllama': images enter through cross-attention layers"):
        open_model(ModelOptions(str(folder)))


def test_unknown_families_are_named(llava_hf, tmp_path):
    folder = changed(llava_hf, tmp_path, model_type="internvl_chat")
    with pytest.raises(ValueError, match="no adapter for models of type 'internvl_chat'"):
        open_model(ModelOptions(str(folder)))


def test_a_family_of_a_newer_transformers_says_so(llava_hf, tmp_path, monkeypatch):
    monkeypatch.setitem(base._ADAPTERS, "of_tomorrow", base._ADAPTERS["llava"])
    folder = changed(llava_hf, tmp_path, model_type="of_tomorrow")
    with pytest.raises(
        ValueError, match=f"transformers {transformers.__version__} does not know .*'of_tomorrow'"
    ):
        open_model(ModelOptions(str(folder)))


def test_a_processor_needs_a_chat_template(llava_hf, tmp_path):
    folder = changed(llava_hf, tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        open_model(ModelOptions(str(folder)))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")
    with pytest.raises(ValueError, match="writes no placeholder for an image"):
        open_model(ModelOptions(str(folder)))


def test_a_processor_is_needed(llava_hf, tmp_path):
    folder = changed(llava_hf, tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises((ValueError, OSError), match="processor"):
        open_model(ModelOptions(str(folder)))


def test_gates_of_another_family_are_refused(llava_hf, tmp_path):
    folder = changed(llava_hf, tmp_path)
    gates = make_gates(tmp_path / "gates", model_family="qwen2_vl")
    with pytest.raises(ValueError, match="holds gates of the family qwen2_vl, .* is of llava"):
        open_model(ModelOptions(str(folder), gates=str(gates)))
    gates = make_gates(tmp_path / "gates", model_family="llava", base_model="other", base_sha256="0" * 64)
    with pytest.raises(ValueError, match="these gates were trained for other"):
        open_model(ModelOptions(str(folder), gates=str(gates)))


def test_image_tokens_that_do_not_match_are_one_error(llava_hf, pictures):
    chat = open_model(ModelOptions(str(llava_hf)))
    with pytest.raises(ValueError, match="places for 0 images, but come with 1"):
        chat.batch(["no place"], pictures[:1])
    chat.form.processor.patch_size = 8  # as of another tower
    answerer = Answerer(chat, Generation(max_new_tokens=1))
    with pytest.raises(ValueError, match="(?i)image features and image tokens do not match"):
        answerer.ask([Question("?", pictures[:1])])


def test_a_processor_that_needs_torchvision_says_so(qwen_folder, monkeypatch):
    from dyvte.engine import processor_model

    def fail(*args, **kwargs):
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fail)
    monkeypatch.setattr(processor_model, "is_torchvision_available", lambda: False)
    with pytest.raises(ValueError, match="pip install torchvision"):
        processor_model.load_processor(str(qwen_folder))


def test_answers_of_a_model_with_several_end_tokens_stop_at_the_first():
    answers = torch.tensor([[5, 9, 7, 0], [5, 6, 7, 7]])
    mask = calibrate._until_end(answers, (7, 9))
    assert mask.tolist() == [[True, True, False, False], [True, True, True, False]]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("AriaImageProcessorPil", {"max_image_size", "split_image"}),
        ("Gemma4ImageProcessorPil", {"max_soft_tokens", "pooling_kernel_size"}),
        ("LlavaNextImageProcessorPil", {"image_grid_pinpoints"}),
        ("Ovis2ImageProcessorPil", {"crop_to_patches", "max_patches", "use_covering_area_grid"}),
        ("Qwen2VLImageProcessorPil", {"size", "patch_size", "merge_size"}),
    ],
)
def test_reports_say_what_decides_the_number_of_visual_tokens(kind, names):
    if not hasattr(transformers, kind):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    try:
        processor = SimpleNamespace(image_processor=getattr(transformers, kind)())
    except ImportError:
        pytest.skip(f"{kind} of transformers {transformers.__version__} needs torchvision")
    form = ChatFormat.__new__(ChatFormat)
    form.processor = processor
    assert names <= form.settings.keys() and json.dumps(form.settings)


def test_suggested_sampling_is_left_out(llava_hf, tmp_path):
    """A checkpoint's repetition penalty would make greedy answers other than the argmaxes that labels compare."""
    copy = tmp_path / "copy"
    shutil.copytree(llava_hf, copy)
    config = {"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.1, "eos_token_id": [2, 4]}
    (copy / "generation_config.json").write_text(json.dumps(config))
    chat = open_model(ModelOptions(str(copy)))
    assert chat.end_token_ids == (2, 4)
    assert chat.model.generation_config.repetition_penalty in (None, 1.0)


def test_conversations_take_turns():
    turns = [{"from": "gpt", "value": "a"}]
    with pytest.raises(ValueError, match="in turns"):
        check_pairs(turns)


def test_studies_run_and_name_the_template(llava_hf, tmp_path, files):
    from dyvte.study import oracle

    pictures = tmp_path / "gqa/data/images"
    pictures.mkdir(parents=True)
    rows = []
    for index in range(3):
        Image.new("RGB", (20, 20), (80 * index, 9, 9)).save(pictures / f"{index}.jpg")
        rows.append({"question_id": str(index), "image": f"{index}.jpg", "text": "what is it"})
    files.lines(tmp_path / "gqa/llava_gqa_testdev_balanced.jsonl", rows)
    given = ["gqa", "--data-dir", tmp_path / "gqa", "--model-path", llava_hf, "--output", tmp_path / "out"]
    oracle.main(
        [str(word) for word in [*given, "--temperature", 0, "--batch-size", 2, "--max_new_tokens", 3]]
    )
    (manifest,) = (tmp_path / "out").glob("*.json")
    assert json.loads(manifest.read_text())["conv_mode"].startswith("its own (")

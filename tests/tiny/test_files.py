"""Files: LLaVA's formats, the benchmark layouts, tokenizer, base model and tower."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dyvte.benchmarks import gqa, pope, textvqa
from dyvte.tiny import base, data, pack, sets, tokenizer, tower
from dyvte.tiny.evaluate import accuracy_by_kind, as_markdown
from dyvte.tiny.questions import KINDS, SHORT_ANSWER
from dyvte.tiny.scenes import draw, render


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    data.write(folder, scenes=230, processes=1)
    return folder


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_instruction_files(made: Path) -> None:
    captions, talks = (json.loads((made / name).read_text()) for name in ("pretrain.json", "finetune.json"))
    assert len(captions) == len(talks) == 230
    for number, (caption, talk) in enumerate(zip(captions, talks, strict=True)):
        assert caption["image"] == talk["image"]
        assert [turn["value"] for turn in caption["conversations"]] == [
            "<image>",
            draw("train", 0, number).caption(),
        ]
        turns = talk["conversations"]
        assert 12 <= len(turns) <= 20
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n")
        assert sum(turn["value"].count("<image>") for turn in turns) == 1
        asked = [turn["value"] for turn in turns[::2]]
        assert len(set(asked)) == len(asked)
    with Image.open(made / "images" / captions[7]["image"]) as image:
        shown = np.asarray(image, dtype=float)
    assert shown.shape == (72, 72, 3)
    assert np.abs(shown - render([draw("train", 0, 7)])[0].numpy()).mean() < 4  # what JPEG changes


def test_files_do_not_depend_on_processes(made: Path, tmp_path: Path) -> None:
    data.write(tmp_path, scenes=130, processes=2)
    for name in ("pretrain.json", "finetune.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((made / name).read_text())[:130]
    assert (tmp_path / "images/000129.jpg").read_bytes() == (made / "images/000129.jpg").read_bytes()


def answers_file(path: Path, rows: list[dict], answers: list[str]) -> Path:
    lines = [
        json.dumps({"question_id": row["question_id"], "prompt": row["text"], "text": answer})
        for row, answer in zip(rows, answers, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_gqa_layout_scores_right_answers_full(tmp_path: Path) -> None:
    sets.write_gqa(tmp_path, 30)
    rows = read_lines(tmp_path / "llava_gqa_testdev_balanced.jsonl")
    records = json.loads((tmp_path / "data/testdev_balanced_questions.json").read_text())
    assert len(rows) == len(records) == 30
    assert all((tmp_path / "data/images" / row["image"]).is_file() for row in rows)
    assert all(row["text"].endswith(f"\n{SHORT_ANSWER}") for row in rows)
    right = [records[row["question_id"]]["answer"] for row in rows]
    assert gqa.score(tmp_path, answers_file(tmp_path / "a.jsonl", rows, right)).value == 100
    wrong = ["purple", *right[1:]]
    assert gqa.score(tmp_path, answers_file(tmp_path / "a.jsonl", rows, wrong)).value == pytest.approx(
        100 * 29 / 30
    )


def test_pope_layout(tmp_path: Path) -> None:
    sets.write_pope(tmp_path, 36)
    rows = read_lines(tmp_path / "llava_pope_test.jsonl")
    assert len(rows) == 36 and len({row["question_id"] for row in rows}) == 36
    assert all((tmp_path / "val2014" / row["image"]).is_file() for row in rows)
    labels = []
    for split in ("adversarial", "random", "popular"):
        part = read_lines(tmp_path / f"coco/coco_pope_{split}.json")
        assert [row["label"] for row in part] == ["yes", "no"] * 6
        assert [f"{row['text']}\n{SHORT_ANSWER}" for row in part] == [
            row["text"] for row in rows if row["category"] == split
        ]
        labels += [row["label"] for row in part]
    assert pope.score(tmp_path, answers_file(tmp_path / "a.jsonl", rows, labels)).value == 100
    said_yes = answers_file(tmp_path / "b.jsonl", rows, ["yes"] * 36)
    assert pope.score(tmp_path, said_yes).value == pytest.approx(200 / 3)


def test_textvqa_layout(tmp_path: Path) -> None:
    sets.write_textvqa(tmp_path, 20)
    rows = read_lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl")
    truth = json.loads((tmp_path / "TextVQA_0.5.1_val.json").read_text())["data"]
    assert all((tmp_path / "train_images" / f"{row['question_id']}.jpg").is_file() for row in rows)
    right = [row["answers"][0] for row in truth]
    assert all(len(answer.split()) >= 2 for answer in right)
    assert textvqa.score(tmp_path, answers_file(tmp_path / "a.jsonl", rows, right)).value == pytest.approx(
        100
    )


def test_held_out_has_every_kind_equally(tmp_path: Path) -> None:
    sets.write_held_out(tmp_path, 3)
    rows = read_lines(tmp_path / "questions.jsonl")
    assert sorted(row["kind"] for row in rows) == sorted([*KINDS] * 3)
    assert all((tmp_path / "images" / row["image"]).is_file() for row in rows)
    result = accuracy_by_kind(rows, [row["answer"].upper() for row in rows])
    assert set(result) == {*KINDS, "mean"} and set(result.values()) == {100.0}
    half = accuracy_by_kind(rows, [row["answer"] if row["kind"] == "add" else "?" for row in rows])
    assert half["mean"] == pytest.approx(100 / len(KINDS))
    table = as_markdown({"accuracy": {"image": result, "blind": half, "0": half}})
    assert "| kind | image | blind | exit 0 |" in table and "| add | 100.0 | 100.0 | 100.0 |" in table


def test_tokenizer_and_base(made: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer.train(tokenizer.training_texts(made, limit=200), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, use_fast=False)
    assert (loaded.unk_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert loaded("</s>").input_ids == [1, 2]
    assert loaded.padding_side == "right" and len(loaded) == 640
    text = f"What digit is in the top left?\n{SHORT_ANSWER}"
    assert loaded.tokenize(text)[-3:] == ["?", "<0x0A>", SHORT_ANSWER]
    assert loaded.tokenize("top left red 3, center blue 7") == [
        "▁top", "▁left", "▁red", "▁3", ",", "▁center", "▁blue", "▁7",
    ]  # fmt: skip
    assert all(len(loaded.tokenize(str(number))) == 1 for number in range(19))
    odd = "naïve 日本 ~\t42"
    assert loaded.decode(loaded(odd).input_ids, skip_special_tokens=True) == odd
    torch.manual_seed(0)
    base.build(len(loaded), hidden=32, layers=3, heads=2, width=48).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    logits = model(torch.tensor([loaded(text).input_ids])).logits
    assert logits.shape[-1] == 640 and logits.isfinite().all()


def test_tower_reads_what_llava_reads_and_learns() -> None:
    torch.manual_seed(0)
    model = tower.build(hidden=32, layers=3, heads=2, patch=12)
    pixels = render([draw("train", 0, index) for index in range(3)])
    processed = tower.processor()([Image.fromarray(image.numpy()) for image in pixels], return_tensors="pt")
    assert torch.equal(torch.as_tensor(processed["pixel_values"]), tower.normalize(pixels))
    states = model(tower.normalize(pixels), output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.allclose(states, tower.read_features(model, tower.normalize(pixels)), atol=1e-6)
    last = model.encoder.layers[-1].mlp.fc1.weight.clone()
    reader = tower.pretrain(model, steps=40, batch=16, rate=3e-3, seed=1)
    assert torch.equal(last, model.encoder.layers[-1].mlp.fc1.weight)
    assert tower.accuracy(model, reader, "eval", 50, 0)["color"] > 0.5  # a fifth by chance


def test_patch_places() -> None:
    cell, place = tower.patch_places(8)
    assert cell.view(9, 9)[4].tolist() == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert place.view(9, 9)[4].tolist() == [3, 4, 5] * 3
    with pytest.raises(ValueError, match="divide 24"):
        tower.patch_places(9)


def test_pack_halves_and_gathers(made: Path, tmp_path: Path) -> None:
    tokenizer.train(tokenizer.training_texts(made, limit=200), tmp_path / "tokenizer")
    torch.manual_seed(0)
    base.build(640, hidden=32, layers=2, heads=2, width=48).save_pretrained(tmp_path / "model")
    small = tower.build(hidden=32, layers=2, heads=2, patch=12)
    small.save_pretrained(tmp_path / "tower")
    tower.processor().save_pretrained(tmp_path / "tower")
    size = pack.pack(tmp_path / "model", tmp_path / "tower", tmp_path / "tokenizer", tmp_path / "out")
    packed = tmp_path / "out"
    assert size == sum(path.stat().st_size for path in packed.rglob("*") if path.is_file())
    config = json.loads((packed / "config.json").read_text())
    assert (config["mm_vision_tower"], config["dtype"]) == ("vision_tower", "bfloat16")
    assert (packed / "tokenizer.model").is_file()
    weights = load_file(packed / "vision_tower/model.safetensors")
    assert set(weights) == set(small.state_dict()) - {"embeddings.position_ids"}
    assert all(value.dtype == torch.bfloat16 for value in weights.values())
    with pytest.raises(FileNotFoundError, match="train.sh"):
        pack.pack(tmp_path, tmp_path / "tower", tmp_path / "tokenizer", packed)

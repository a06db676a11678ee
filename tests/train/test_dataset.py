"""Samples and batches."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPImageProcessorPil

from dyvte.engine.images import load_image
from dyvte.engine.instructions import read_records
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images
from llava.train.arguments import DataArguments
from llava.train.dataset import SupervisedCollator, SupervisedDataset


@pytest.fixture
def build(tokenizer, vision_tower, instruction_data):
    processor = CLIPImageProcessorPil.from_pretrained(vision_tower)

    def _build(records=None, processor=processor, **options) -> SupervisedDataset:
        path, images = instruction_data
        arguments = DataArguments(data_path=str(path), image_folder=str(images), image_aspect_ratio="pad")
        records = read_records(str(path)) if records is None else records
        return SupervisedDataset(records, tokenizer, conv_templates["v1"], arguments, processor, **options)

    return _build


def record(*values: str, image=None) -> dict:
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": turns} | ({} if image is None else {"image": image})


def test_sample_with_image(build, instruction_data):
    dataset = build()
    sample = dataset[1]
    assert (sample["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 1
    image = load_image("1.png", folder=instruction_data[1])
    expected = process_images([image], dataset.image_processor, SimpleNamespace(image_aspect_ratio="pad"))[0]
    assert torch.equal(sample["images"][0], expected) and sample["image_sizes"] == [(29, 30)]


def test_text_only_sample(build):
    sample = build()[0]
    assert sample["images"] == [] and IMAGE_TOKEN_INDEX not in sample["input_ids"]


def test_several_images(build):
    sample = build([record("Compare <image> and <image>.", "red", image=["1.png", "2.png"])])[0]
    assert len(sample["images"]) == 2 and (sample["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 2


def test_truncation_takes_the_image_along(build, tokenizer):
    dataset = build([record("How many digits are there? " * 20, "red", "<image>", "blue", image="1.png")])
    whole = len(dataset[0]["input_ids"])
    dataset.tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, model_max_length=whole // 2)
    sample = dataset[0]
    assert len(sample["input_ids"]) == len(sample["labels"]) == whole // 2
    assert sample["images"] == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "x"}, "no conversations"),
        ({"id": "x", "conversations": [{"from": "human"}]}, "'value'"),
        (record("What?", "red", image="1.png"), "1 images but 0"),
        (record("<image> <image>", "red", image="1.png"), "1 images but 2"),
    ],
)
def test_malformed_records_are_named_at_once(bad, message, build):
    with pytest.raises(ValueError, match=f"sample 'x'.*{message}"):
        build([bad])


def test_image_without_a_tower_is_refused(build):
    with pytest.raises(ValueError, match="--vision_tower"):
        build([record("<image>", "red", image="1.png")], processor=None)


def test_image_outside_of_the_folder_is_refused(build):
    with pytest.raises(ValueError, match="leads out of the image folder"):
        build([record("<image>", "red", image="../instruct.json")])[0]


def test_broken_conversation_names_its_sample(build):
    with pytest.raises(ValueError, match="sample 'x'.*alternate"):
        build([{"id": "x", "conversations": [{"from": "human", "value": "a"}] * 2}])[0]


def test_data_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data_path"):
        read_records(str(tmp_path / "none.json"))
    (tmp_path / "dict.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="JSON list"):
        read_records(str(tmp_path / "dict.json"))


def test_collator_pads_right_and_orders_images(build):
    dataset = build()
    samples = [dataset[1], dataset[4], dataset[3]]
    batch = SupervisedCollator(0, (3, 28, 28))(samples)
    lengths = [len(sample["input_ids"]) for sample in samples]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        assert torch.equal(batch["input_ids"][row, :length], sample["input_ids"])
        assert torch.equal(batch["labels"][row, :length], sample["labels"])
        assert (batch["labels"][row, length:] == IGNORE_INDEX).all()
    assert torch.equal(batch["images"], torch.stack([samples[0]["images"][0], samples[2]["images"][0]]))


def test_batch_of_text_only_keeps_the_projector_in_the_graph(build, llava_model):
    """The blank image changes no loss, and gives the projector gradients that are zero, not absent."""
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    model = LlavaLlamaForCausalLM.from_pretrained(llava_model)
    model.get_vision_tower().load_model()
    dataset = build()
    samples = [dataset[0], dataset[4]]
    plain = SupervisedCollator(0)(samples)
    assert "images" not in plain
    carried = SupervisedCollator(0, (3, 28, 28))(samples)
    loss = model(**carried).loss
    torch.testing.assert_close(loss, model(**plain).loss)
    loss.backward()
    gradients = [parameter.grad for parameter in model.get_model().mm_projector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)

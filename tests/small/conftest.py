"""A stand-in for SmolLM2-135M-Instruct: a folder of the same layout, with random weights and a small vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dyvte.small.knowledge import QUESTIONS
from dyvte.tiny import data

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def spoken_data(tmp_path_factory) -> Path:
    """Data of eight scenes in fuller language."""
    folder = tmp_path_factory.mktemp("spoken")
    data.write(folder, scenes=8, spoken=True)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Tied embeddings, grouped keys and values, ChatML, a byte-level vocabulary whose digits are single tokens."""
    folder = tmp_path_factory.mktemp("small") / "base"
    tokenizer = Tokenizer(models.BPE())
    digits, words = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*QUESTIONS, *QUESTIONS.values()], trainer)
    end, start, stop = SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=end, bos_token=start, eos_token=stop, pad_token=stop
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder

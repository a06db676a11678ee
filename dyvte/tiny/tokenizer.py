"""A small Llama-style SentencePiece tokenizer, trained on the instruction data's own words.

BPE with byte fallback, unk 0, bos 1, eos 2, as Llama's. Pieces do not mix words with punctuation, so that a
digit is the same piece wherever it stands. Each of LLaVA's two format instructions is a piece of its own,
because spelled out they would be half of every prompt.

    python -m dyvte.tiny.tokenizer --data DIR --out DIR
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterable
from pathlib import Path

from dyvte.cli import run
from dyvte.io import read_json, write_json, write_whole
from dyvte.tiny.questions import LETTER_ANSWER, SHORT_ANSWER

SYSTEM_TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The opening of Vicuna's prompts, so that they stay short as well."""

FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_CUT = "\x1f"
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    **_SPECIAL,
    "legacy": False,
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 512,
}


def train(texts: Iterable[str], folder: Path, vocabulary: int = 640) -> None:
    """Learn the pieces and write ``tokenizer.model`` and its two JSON files into ``folder``.

    Args:
        texts: what is to be said in few pieces.
        vocabulary: number of pieces, the 256 bytes included.

    Raises:
        RuntimeError: from SentencePiece, when the texts are too few for so many pieces.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    parts = (re.sub(r"([^\w\s])", rf"{_CUT}\1{_CUT}", text) for text in texts)
    SentencePieceTrainer.train(
        sentence_iterator=parts,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pretokenization_delimiter=_CUT,
        user_defined_symbols=[SHORT_ANSWER, LETTER_ANSWER],
        minloglevel=2,
    )
    write_whole(folder / "tokenizer.model", model.getvalue())
    write_json(folder / "tokenizer_config.json", _CONFIG, indent=2)
    write_json(folder / "special_tokens_map.json", _SPECIAL, indent=2)


def training_texts(data: Path, limit: int = 4000) -> list[str]:
    """The words of generated data (``dyvte.tiny.data``), as prompts have them.

    Raises:
        FileNotFoundError: the folder has no instruction files.
    """
    texts = [SYSTEM_TEXT] * limit + [str(number) for number in range(19)] * limit
    for name in ("pretrain.json", "finetune.json"):
        for record in read_json(data / name)[:limit]:
            for turn in record["conversations"]:
                lines = turn["value"].replace("<image>", "").replace(SHORT_ANSWER, "").split("\n")
                # Words meet a template's marks without a blank in between: "</s>USER: What", "<image>\nWhat".
                texts += [f"USER:{line} ASSISTANT:{line}|USER: {line}|{line}" for line in lines if line]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that dyvte.tiny.data wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=640)

    def action(args: argparse.Namespace) -> None:
        train(training_texts(args.data), args.out, args.vocabulary)
        print(f"tokenizer of {args.vocabulary} pieces written to {args.out}")

    run(parser, action)


if __name__ == "__main__":
    main()

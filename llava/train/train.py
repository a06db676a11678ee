"""Train LLaVA: alignment of the projector, full or LoRA fine-tuning, or the exit gates of a finished model.

    python -m llava.train.train --model_name_or_path ... --data_path ... --output_dir ...

A run resumes from the newest complete checkpoint in its output folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transformers import set_seed

from dyvte.engine.instructions import data_digest
from dyvte.engine.model import ModelOptions, TrainingSet
from dyvte.engine.openers import LLAVA, family_of, open_model
from dyvte.gates.gate import ExitGates
from dyvte.gates.origin import Origin, TrainedOn, short_name
from dyvte.gates.trainer import log_to_stderr
from dyvte.gates.training import GateModel, GateTrainer, find_gates
from dyvte.provenance import checkpoint_digest
from llava.chat_model import LlavaChatModel
from llava.conversation import conv_templates
from llava.train import prepare
from llava.train.arguments import Arguments, DataArguments, parse_arguments
from llava.train.dataset import make_supervised_data_module, template_name
from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)


def build_trainer(arguments: Arguments, attn_implementation: str | None) -> LLaVATrainer:
    """Model, data and Trainer from arguments."""
    model_args, data_args, training_args = arguments
    template = conv_templates[template_name(model_args.version or "v0")]
    model = prepare.load_model(model_args, training_args, attn_implementation)
    tokenizer = prepare.load_tokenizer(model, model_args, training_args)
    if training_args.lora_enable:
        model = prepare.add_lora(model, training_args)
    tower = None
    if model_args.vision_tower is not None:
        tower = prepare.add_vision(model, tokenizer, arguments)
    prepare.log_trainable(model)
    data = make_supervised_data_module(tokenizer, data_args, template, tower, model.config)
    trains = "projector" if model_args.tune_mm_mlp_adapter else "full"
    trains = "lora" if training_args.lora_enable else trains
    return LLaVATrainer(model=model, processing_class=tokenizer, args=training_args, trains=trains, **data)


def build_gate_trainer(arguments: Arguments, attn_implementation: str | None) -> GateTrainer:
    """A finished model, gates, data and Trainer from arguments."""
    model_args, data_args, training_args = arguments
    if family_of(model_args.model_name_or_path) != LLAVA:
        return build_processor_gate_trainer(arguments, attn_implementation)
    name = template_name(model_args.version or "v1")
    base, tower = prepare.load_frozen_llava(arguments, attn_implementation)
    tokenizer = prepare.load_tokenizer(base, model_args, training_args)
    set_seed(training_args.seed)  # every process draws the same fresh gates
    path, config = model_args.model_name_or_path, base.config
    gates = find_gates(config.num_hidden_layers, config.hidden_size, model_args.visual_gates, path)
    template = conv_templates[name]
    data = make_supervised_data_module(tokenizer, data_args, template, tower, config, blank_image=False)
    if training_args.should_save:  # digests take time: only for the process that writes them
        digest = checkpoint_digest(path, getattr(config, "mm_vision_tower", None))
        mark_origin(gates, path, digest, config.model_type, data_args, data["train_dataset"])
    chat = LlavaChatModel(base, tokenizer, tower.image_processor, name, handle=None)
    model = GateModel(gates, chat, training_args.gate_alpha)
    prepare.log_trainable(model)
    return GateTrainer(model=model, args=training_args, **data)


def build_processor_gate_trainer(arguments: Arguments, attn_implementation: str | None) -> GateTrainer:
    """The same for a family that brings its processor and chat template.

    Raises:
        ValueError: a prompt template was asked for, or the model cannot be placed as the arguments ask.
    """
    model_args, data_args, training_args = arguments
    prepare.check_sharding(training_args)
    path, dtype = model_args.model_name_or_path, str(training_args.compute_dtype).removeprefix("torch.")
    options = ModelOptions(
        path,
        template=model_args.version,
        device="cuda" if training_args.device_map else str(training_args.device),
        dtype=dtype,
        attn_implementation=attn_implementation,
        load_8bit=training_args.bits == 8,
        load_4bit=training_args.bits == 4,
        shard_model=training_args.shard_model,
    )
    chat = open_model(options)
    assert chat.handle is not None
    set_seed(training_args.seed)
    config = chat.decoder_config
    gates = find_gates(config.num_hidden_layers, config.hidden_size, model_args.visual_gates, path)
    dataset, collator = chat.training_data(
        data_args.data_path or "", data_args.image_folder or "", training_args.model_max_length
    )
    if training_args.should_save:
        run = chat.handle.run
        mark_origin(gates, path, run.model_sha256, run.family, data_args, dataset)
    model = GateModel(gates, chat, training_args.gate_alpha)
    prepare.log_trainable(model)
    return GateTrainer(model=model, args=training_args, train_dataset=dataset, data_collator=collator)


def mark_origin(
    gates: ExitGates,
    path: str,
    digest: str | None,
    family: str | None,
    data_args: DataArguments,
    dataset: TrainingSet,
) -> None:
    """Write into the gates what they are trained on.

    Raises:
        ValueError: they belong to another model.
    """
    gates.check_base(digest, short_name(path))
    data = data_digest(data_args.data_path or "", dataset.records, data_args.image_folder or "")
    gates.origin = Origin(short_name(path), digest, family, TrainedOn(data, len(dataset)))


def train(attn_implementation: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train, and save to ``--output_dir``."""
    arguments = model_args, _, training_args = parse_arguments(argv)
    log_to_stderr(training_args)
    build = build_gate_trainer if model_args.tune_visual_gates else build_trainer
    trainer = build(arguments, attn_implementation)
    trainer.train_to_the_end()
    trainer.model.config.use_cache = True
    trainer.save_model()


if __name__ == "__main__":
    train()

"""Train LLaVA: alignment of the projector, full or LoRA fine-tuning, or the exit gates of a finished model.

    python -m llava.train.train --model_name_or_path ... --data_path ... --output_dir ...

A run resumes from the newest complete checkpoint in its output folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from transformers import set_seed
from transformers.utils.hub import cached_file

from dyvte.cli import one_line_errors
from dyvte.engine.instructions import check_records, data_digest, read_records
from dyvte.engine.model import ChatModel, Collator, ModelOptions, TrainingSet
from dyvte.engine.openers import LLAVA, family_of, open_model
from dyvte.gates.gate import ExitGates
from dyvte.gates.identity import RunIdentity, settings_of, weights_digest
from dyvte.gates.origin import Origin, TrainedOn, short_name
from dyvte.gates.trainer import log_to_stderr, only_run
from dyvte.gates.training import GateModel, GateTrainer, find_gates
from dyvte.provenance import checkpoint_digest, sha256_of
from llava.chat_model import LlavaChatModel
from llava.conversation import conv_templates
from llava.train import prepare
from llava.train.arguments import Arguments, parse_arguments
from llava.train.dataset import make_supervised_data_module, template_name
from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)

PROG = "python -m llava.train.train"


def build_trainer(arguments: Arguments, attn_implementation: str | None) -> LLaVATrainer:
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
    trainer = LLaVATrainer(model=model, processing_class=tokenizer, args=training_args, trains=trains, **data)
    if training_args.should_save:
        adapter = model_args.pretrain_mm_mlp_adapter
        start = None if adapter is None else sha256_of([Path(adapter)], Path(adapter).parent).popitem()[1]
        config = cached_file(model_args.model_name_or_path, "config.json", cache_dir=training_args.cache_dir)
        digest = checkpoint_digest(str(Path(config or "").parent), model_args.vision_tower)
        trainer.identity = identity_of(arguments, digest, digest_of(arguments, data["train_dataset"]), start)
    return trainer


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
    data = make_supervised_data_module(
        tokenizer, data_args, conv_templates[name], tower, config, blank_image=False
    )
    digest = None
    if training_args.should_save:  # digests take time: only for the process that writes them
        digest = checkpoint_digest(path, getattr(config, "mm_vision_tower", None))
    chat = LlavaChatModel(base, tokenizer, tower.image_processor, name, handle=None)
    return gate_trainer(arguments, chat, gates, digest, config.model_type, **data)


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
    run = chat.handle.run
    return gate_trainer(arguments, chat, gates, run.model_sha256, run.family, dataset, collator)


def gate_trainer(
    arguments: Arguments,
    chat: ChatModel,
    gates: ExitGates,
    model_digest: str | None,
    family: str | None,
    train_dataset: TrainingSet,
    data_collator: Collator,
) -> GateTrainer:
    """A Trainer of gates, which are marked with what they are trained on.

    Raises:
        ValueError: they belong to another model.
    """
    model_args, _, training_args = arguments
    name = short_name(model_args.model_name_or_path)
    gates.check_base(model_digest, name)
    model = GateModel(gates, chat, training_args.gate_alpha)
    prepare.log_trainable(model)
    trainer = GateTrainer(
        model=model, args=training_args, train_dataset=train_dataset, data_collator=data_collator
    )
    if training_args.should_save:
        data = digest_of(arguments, train_dataset)
        gates.origin = Origin(name, model_digest, family, TrainedOn(data, len(train_dataset)))
        trainer.identity = identity_of(arguments, model_digest, data, weights_digest(gates))
    return trainer


def check_data(arguments: Arguments) -> None:
    """Find what is wrong with the data and needs no model to be found.

    Raises:
        FileNotFoundError, ValueError: see :func:`dyvte.engine.instructions.check_records`.
    """
    model_args, data_args, _ = arguments
    path = data_args.data_path or ""
    takes_images = model_args.tune_visual_gates or model_args.vision_tower is not None
    fit = {"turns_fit": len} if model_args.version == "plain" else {}  # puts other turns into its prompt
    check_records(read_records(path), path, data_args.image_folder, takes_images, **fit)


def digest_of(arguments: Arguments, dataset: TrainingSet) -> str:
    _, data_args, _ = arguments
    return data_digest(data_args.data_path or "", dataset.records, data_args.image_folder or "")


def identity_of(arguments: Arguments, model: str | None, data: str, start: str | None) -> RunIdentity:
    """What the run's result depends on."""
    _, _, training_args = arguments
    return RunIdentity(model, data, start, settings_of(*arguments, global_batch=training_args.global_batch))


def train(attn_implementation: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train, and save to ``--output_dir``."""
    arguments = model_args, _, training_args = parse_arguments(argv)
    log_to_stderr(training_args)
    build = build_gate_trainer if model_args.tune_visual_gates else build_trainer
    with only_run(training_args):
        if training_args.should_save:
            check_data(arguments)  # before minutes are spent on loading a model
        build(arguments, model_args.attn_implementation or attn_implementation).train_to_the_end()


if __name__ == "__main__":
    with one_line_errors(PROG):
        train()

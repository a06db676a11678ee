"""A model of transformers behind the engine's interface: its processor, its chat template, its own code for images.

Whatever the family: prompts are LLaVA's words for a question inside the family's chat template, with a placeholder
for each image where ``<image>`` stands, else in front. Nothing that a checkpoint brings is executed:
``trust_remote_code`` stays off.

``dyvte.engine.openers`` opens it by name. Called by :mod:`dyvte.bench.throughput`, :mod:`dyvte.tiny.tiles` and
:mod:`llava.convert`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from dyvte.decoding.attach import Handle, attach
from dyvte.decoding.attention.plan import STOCK
from dyvte.decoding.policy import NoExit
from dyvte.engine.chat_format import ChatCollator, ChatFormat, ChatSamples
from dyvte.engine.instructions import check_targets
from dyvte.engine.model import (
    Batch,
    ChatModel,
    Collator,
    DefaultTemplate,
    Generation,
    ModelOptions,
    TrainingSet,
    resolved_dtype,
)
from dyvte.engine.openers import THINKER
from dyvte.engine.questions import Question
from dyvte.engine.video import Video, Visual
from dyvte.families.base import adapter_for
from dyvte.fields import check_sizes
from dyvte.gates.exit import LearnedExit
from dyvte.gates.files import gates_digest, has_gates
from dyvte.gates.gate import ExitGates
from dyvte.gates.hub import hub_name
from dyvte.gates.origin import short_name
from dyvte.gates.supervision import IGNORE_INDEX, Embedded
from dyvte.provenance import checkpoint_digest
from dyvte.weights import load_pretrained, reading


def open_processor_model(options: ModelOptions) -> ProcessorModel:
    """Load a checkpoint of one of transformers' vision-language classes, with its processor.

    Raises:
        OSError: a file of the checkpoint is missing.
        ValueError: the family cannot have exits, or needs a newer transformers; a prompt template was asked for; the
            processor has none; the gates are of another model. All but gates of the wrong size are found before
            weights are loaded.
    """
    path = options.model_path
    with reading(f"{path}/config.json"):
        fields, _ = PretrainedConfig.get_config_dict(path)
    check_sizes(fields, f"{path}/config.json")
    family = fields.get(THINKER, fields).get("model_type", "")
    try:
        adapter_for(SimpleNamespace(config=SimpleNamespace(model_type=family)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if family not in CONFIG_MAPPING:
        raise ValueError(
            f"{path}: transformers {transformers.__version__} does not know models of type {family!r}, "
            "later ones do: pip install --upgrade transformers"
        )
    if options.template is not None and not isinstance(options.template, DefaultTemplate):
        raise ValueError(
            f"{path} is of the family {family}, whose prompts follow its own chat template: "
            f"leave the template {str(options.template)!r} out"
        )
    form = ChatFormat(load_processor(path), path)
    digest, policy, of_gates = checkpoint_digest(path), NoExit(), None
    place = options.gates or (path if Path(path).is_dir() and has_gates(path) else None)
    if place is not None:
        gates = ExitGates.from_pretrained(place).eval()
        if gates.origin.model_family not in (None, family):
            raise ValueError(
                f"{place} holds gates of the family {gates.origin.model_family}, {path} is of {family}"
            )
        gates.check_base(digest, short_name(path))
        policy, of_gates = LearnedExit(gates), gates_digest(place)
    chat = ProcessorModel(load_model(options, fields), form)
    chat.handle.policy = policy
    name = hub_name(options.gates) if options.gates else None
    chat.handle.run = replace(chat.handle.run, model_sha256=digest, gates_sha256=of_gates, gates_name=name)
    return chat


def load_processor(path: str) -> Any:
    """The checkpoint's processor.

    Raises:
        ValueError: it has none, or a package that it needs is not installed.
    """
    try:
        with reading(f"{path} (processor)"):
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        # without torchvision, transformers fails in several ways to make a processor that also takes videos
        if is_torchvision_available() or not isinstance(
            error.__cause__, (ImportError, AttributeError, TypeError)
        ):
            raise
        raise ValueError(
            f"the processor of {path} needs torchvision: pip install torchvision ({error})"
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ValueError(f"{path} has no processor for images and text: it lacks preprocessor_config.json")
    return processor


def load_model(options: ModelOptions, fields: dict[str, Any]) -> Any:
    """The weights, where and in the precision that the options ask for.

    Args:
        fields: of the checkpoint's config.
    """
    dtype = resolved_dtype(options.device, options.dtype)
    own = str(fields.get("dtype") or fields.get("torch_dtype") or "")
    if options.dtype == "auto" and dtype == "float16" and own == "bfloat16":
        dtype = own  # some of these families overflow in float16
    on_gpu = torch.device(options.device).type != "cpu" and torch.cuda.is_available()
    loading: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if on_gpu and not options.shard_model:  # else layers leave the host one by one
        loading["device_map"] = "auto" if options.device == "cuda" else {"": options.device}
    if options.attn_implementation:
        loading["attn_implementation"] = STOCK.get(options.attn_implementation, options.attn_implementation)
    if options.load_8bit or options.load_4bit:
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=options.load_8bit and not options.load_4bit, load_in_4bit=options.load_4bit
        )
    if THINKER in fields:
        loading["config"] = getattr(AutoConfig.from_pretrained(options.model_path), THINKER)
    model, _ = load_pretrained(AutoModelForImageTextToText, options.model_path, **loading)
    return model.eval()


class ProcessorModel(ChatModel):
    """A vision-language model of transformers with its processor. ``NoExit`` is attached to it.

    Args:
        model: of a family in :mod:`dyvte.families`.
        form: its processor.
    """

    def __init__(self, model: Any, form: ChatFormat) -> None:
        self.model, self.form, self.tokenizer = model, form, form.tokenizer
        self._model: Any = model
        own = model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else form.tokenizer.eos_token_id
        self.end_token_ids = tuple(ends) if isinstance(ends, (list, tuple)) else (ends,)
        # without the sampling and penalties that checkpoints suggest: greedy answers are argmaxes, as labels assume
        model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id,
            eos_token_id=list(self.end_token_ids),
            pad_token_id=form.tokenizer.pad_token_id,
        )
        self.handle: Handle = attach(model, NoExit())  # pyright: ignore[reportIncompatibleVariableOverride]
        self.handle.run = replace(
            self.handle.run, family=model.config.model_type, template=form.name, processor=form.settings
        )
        self._accepted = set(inspect.signature(model.forward).parameters)
        self.mixes_videos = form.video_placeholder is None or adapter_for(model).mixes_videos

    def prompt(
        self, question: Question, history: Sequence[tuple[Question, str]] = (), system: str | None = None
    ) -> str:
        return self.form.render([*history, (question, None)], system)

    def batch(self, prompts: Sequence[str], images: Sequence[Visual]) -> Batch:
        if not self.mixes_videos and len({isinstance(visual, Video) for visual in images}) > 1:
            raise ValueError(
                f"models of type {self._model.config.model_type!r} take images or videos in one batch, not both"
            )
        return self._usable(self.form.batch(prompts, images))

    def _usable(self, batch: Batch) -> Batch:
        """Without the token types that some tokenizers make and the model has no use for."""
        kept = {
            name: v for name, v in batch.images.items() if name != "token_type_ids" or name in self._accepted
        }
        return replace(batch, images=kept)

    def generate(self, batch: Batch, generation: Generation, streamer=None, stopping=None) -> Tensor:
        batch = self.place(batch)
        output = self._model.generate(
            **batch.inputs(), **generation.arguments(), streamer=streamer, stopping_criteria=stopping
        )
        return output[:, batch.input_ids.shape[1] :]

    def decode(self, ids: Tensor) -> list[str]:
        return self.form.decode(ids)

    def embed(self, batch: Batch, answers: Tensor, answer_mask: Tensor) -> Embedded:
        batch = self.place(batch)
        shape = batch.input_ids.shape
        more = {
            name: torch.cat([value, torch.zeros_like(answers, dtype=value.dtype)], 1)
            for name, value in batch.images.items()
            if torch.is_tensor(value) and value.shape == shape
        }
        labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
        whole = Batch(
            torch.cat([batch.input_ids, answers], 1),
            torch.cat([batch.attention_mask, answer_mask.to(batch.attention_mask)], 1),
            {**batch.images, **more},
        )
        labels = torch.cat([labels, answers.where(answer_mask, IGNORE_INDEX)], 1)
        return embedded_call(self.handle, self.model, whole.inputs(), labels)

    def training_data(
        self, data_path: str, image_folder: str, max_length: int = 2048
    ) -> tuple[TrainingSet, Collator]:
        samples: Any = ChatSamples(self.form, data_path, image_folder, max_length)
        check_targets(samples, data_path)
        collator: Any = ChatCollator(self.form)
        return samples, collator

    def embed_samples(self, batch: dict[str, Any]) -> Embedded:
        fields = dict(batch)
        labels = fields.pop("labels").to(self.device)
        inputs = Batch(fields.pop("input_ids"), fields.pop("attention_mask"), fields)
        inputs = self.place(self._usable(inputs)).inputs()
        return embedded_call(self.handle, self.model, inputs, labels)


@torch.no_grad()
def embedded_call(handle: Handle, model: Any, inputs: dict[str, Any], labels: Tensor) -> Embedded:
    """What a family's own code makes of prompts with answers.

    Args:
        handle: attached to the model.
        inputs: keywords of the model's forward; token types of answers are put right here.
        labels: (B, S) long, -100 outside of answers.
    """
    answered = (labels != IGNORE_INDEX).cumsum(1) > 0
    types = {
        name: inputs[name].masked_fill(answered, value)
        for name, value in adapter_for(model).answer_types.items()
        if name in inputs
    }
    with handle.capture() as calls:
        model(**{**inputs, **types}, use_cache=False, logits_to_keep=1)
    (call,) = calls
    visual = call.visual_mask if call.visual_mask is not None else torch.zeros_like(answered)
    mask = inputs["attention_mask"]
    return Embedded(call.embeds, labels, visual, mask, call.position_ids, call.blocks, call.extras)

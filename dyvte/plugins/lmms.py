"""The model ``dyvte`` of lmms-eval: any model of this project, with any method, batched.

    python -m lmms_eval --model dyvte --tasks pope,mme --batch_size 8 --log_samples --output_path results \
        --model_args pretrained=liuhaotian/llava-v1.5-7b,gates=GATES,method=dyvte,threshold=0.5,reports=results/dyvte

lmms-eval makes the object (:mod:`dyvte.plugins.lmms_manifest` names the classes) and asks it. With ``reports``, what
each prefill did goes to ``REPORTS.<rank>.jsonl``, which :mod:`dyvte.report.harness` puts into the tables. Its first
line is the run (model, method, settings), each further line the answer to one request.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.utils import Collator
from PIL import Image
from tqdm import tqdm

from dyvte.engine.model import Generation
from dyvte.engine.options import open_answerer
from dyvte.engine.questions import IMAGE_TOKEN, Question
from dyvte.gates.exit import LearnedExit

OPTIONS = {
    "pretrained": "model_path",
    "model_base": "model_base",
    "gates": "gates",
    "method": "method",
    "method_config": "method_config",
    "threshold": "threshold",
    "exit_layer": "exit_layer",
    "dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "cuda_graphs": "cuda_graphs",
}
"""Names in ``--model_args``, and the flags of this project's command lines that they are."""
GENERATION = {"max_new_tokens", "temperature", "top_p", "num_beams", "do_sample", "until"}
IGNORED = {"image_aspect_ratio", "max_pixels", "min_pixels"}
"""What tasks say to single models; the checkpoint's own setting holds here."""


@dataclass(frozen=True)
class Job:
    """One request: its question, how to generate, and where it comes from."""

    question: Question
    settings: Mapping[str, Any]
    task: str
    split: str
    doc_id: Any


class Dyvte(lmms):
    """The simple form: a task's text, with its images in front.

    Args:
        pretrained: folder or Hub id; further names are those of :data:`OPTIONS`, settings of ``method_config`` joined
            by ``;`` (``k=3;r=0.5``).
        conv_template: name of the prompt template; by default what the checkpoint asks for.
        reports: prefix of the file that takes the reports; a new one for each run.

    Raises:
        ValueError: an argument is unknown, or does not fit the others.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = "cuda",
        conv_template: str | None = None,
        reports: str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise ValueError(
                f"unknown model_args {', '.join(unknown)}: "
                f"use pretrained, conv_template, reports, {', '.join(list(OPTIONS)[1:])}"
            )
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a positive number for this model, got {batch_size!r}")
        flags = {OPTIONS[name]: value for name, value in options.items()}
        if "method_config" in flags:
            flags["method_config"] = str(flags["method_config"]).split(";")
        self.answerer = open_answerer(
            SimpleNamespace(model_path=pretrained, device=device or "cuda", **flags), conv_template
        )
        self.batch_size, self.reports = int(batch_size), reports
        self._file: Path | None = None  # named once lmms-eval has told the rank
        self._run = self._described(pretrained, options)
        self.device: torch.device = self.answerer.chat.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer all requests, the longest first; their order is kept.

        Raises:
            ValueError: the file for the reports is there already.
        """
        if self.reports and self._file is None:
            self._file = self._open_reports(self.reports)
        collator = Collator(
            [self.job(*request.args) for request in requests],
            lambda job: -len(job.question.text),
            group_fn=lambda job: job.settings,
            grouping=True,
        )
        results: list[GenerationResult] = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="dyvte") as progress:
            for batch in collator.get_batched(n=self.batch_size):
                results += self._answers(batch)
                progress.update(len(batch))
        return collator.get_original(results)

    def job(
        self, text: str, settings: Mapping[str, Any], to_visual: Any, doc_id: Any, task: str, split: str
    ) -> Job:
        """A request of lmms-eval, whose arguments these are."""
        images = to_visual(self.task_dict[task][split][doc_id]) if to_visual else []
        return Job(Question(text, _images(images or [])), settings, task, split, doc_id)

    def _answers(self, batch: Sequence[Job]) -> list[GenerationResult]:
        self.answerer.generation, until = read_settings(batch[0].settings)
        answers = self.answerer.ask([job.question for job in batch])
        results, tokenizer = [], self.answerer.chat.tokenizer
        for answer in answers:
            tokens = TokenCounts(
                answer.report.prompt_tokens if answer.report else None, len(tokenizer(answer.text).input_ids)
            )
            results.append(GenerationResult(cut(answer.text, until), tokens))
        if self._file is not None:
            lines = [
                {"task": job.task, "split": job.split, "doc_id": job.doc_id, "text": answer.text}
                | {"metadata": answer.report.as_dict() if answer.report else None}
                for job, answer in zip(batch, answers, strict=True)
            ]
            with self._file.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        return results

    def _described(self, pretrained: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The run as the first line of the reports tells it: what :class:`dyvte.report.record.ResultRecord` holds."""
        policy = self.answerer.chat.handle.policy if self.answerer.chat.handle else None
        learned = policy if isinstance(policy, LearnedExit) else None
        settings = {name: str(value) for name, value in options.items() if name != "method"}
        if learned is not None:
            settings["threshold"] = f"{learned.threshold:g}"  # also where the gates were calibrated to it
        return {
            "model": pretrained,
            "method": options.get("method") or ("none" if learned is None else "dyvte"),
            "settings": settings,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def _open_reports(self, prefix: str) -> Path:
        path = Path(f"{prefix}.{self.rank}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(self._run) + "\n")
        except FileExistsError:
            raise ValueError(
                f"{path} holds the reports of another run: name another prefix, or delete it"
            ) from None
        return path

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation: its log-probability, and whether greedy decoding gives it."""
        results = []
        for request in requests:
            text, continuation, to_visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            wanted: str = continuation(document) if isinstance(continuation, Callable) else continuation
            question = self.job(text, {}, to_visual, doc_id, task, split).question
            chat = self.answerer.chat
            prompt = chat.prompt(question)
            head = chat.batch([prompt], question.images).input_ids.shape[1]
            batch = chat.place(chat.batch([f"{prompt} {wanted.strip()}"], question.images))
            ids = batch.input_ids[0, head:]
            logits = chat.model(**batch.inputs(), use_cache=False).logits[0, -len(ids) - 1 : -1].float()
            likelihood = logits.log_softmax(-1).gather(1, ids[:, None]).sum().item()
            results.append((likelihood, bool((logits.argmax(-1) == ids).all())))
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not available.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("the model dyvte does not take multi-round tasks")


class DyvteChat(Dyvte):
    """The chat form: images stand in the last message where the task puts them."""

    is_simple = False

    def job(  # pyright: ignore[reportIncompatibleMethodOverride] - lmms-eval gives the forms other arguments
        self, text: str, to_messages: Any, settings: Mapping[str, Any], doc_id: Any, task: str, split: str
    ) -> Job:
        messages = to_messages(self.task_dict[task][split][doc_id])
        if [message["role"] for message in messages] != ["user"]:
            raise ValueError(
                f"task {task}: the model dyvte takes one message of the user, not a conversation"
            )
        words, images = [], []
        for part in messages[0]["content"]:
            if part["type"] == "image":
                images.append(part["url"])
                words.append(f"{IMAGE_TOKEN}\n")
            elif part["type"] == "text":
                words.append(part["text"])
            else:
                raise ValueError(f"task {task}: the model dyvte does not take {part['type']}")
        return Job(Question("".join(words), _images(images)), settings, task, split, doc_id)


def read_settings(settings: Mapping[str, Any]) -> tuple[Generation, list[str]]:
    """How a task wants answers generated, and the texts that end one.

    Raises:
        ValueError: a setting is unknown.
    """
    if unknown := sorted(settings.keys() - GENERATION - IGNORED):
        raise ValueError(
            f"the task's generation_kwargs hold {', '.join(unknown)}: use {', '.join(sorted(GENERATION))}"
        )
    until = settings.get("until") or []
    temperature = float(settings.get("temperature") or 0)
    sampled = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
    generation = Generation(
        max_new_tokens=int(settings.get("max_new_tokens", 128)),
        temperature=temperature if sampled else 0.0,
        top_p=settings.get("top_p") if sampled else None,
        num_beams=int(settings.get("num_beams") or 1),
    )
    return generation, [until] if isinstance(until, str) else list(until)


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of these that it holds."""
    stops = [re.escape(stop) for stop in until if stop]
    return re.split("|".join(stops), text, maxsplit=1)[0] if stops else text


def _images(given: Sequence[Any]) -> list[Image.Image]:
    for image in given:
        if not isinstance(image, Image.Image):
            raise ValueError(f"the model dyvte takes images, not {type(image).__name__}")
    return [image.convert("RGB") for image in given]

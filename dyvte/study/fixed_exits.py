"""Answer a benchmark with the image dropped after one layer for all samples, for every layer (Fig. 4 of the paper).

python -m dyvte.study.fixed_exits NAME --data-dir DIR --output DIR --model-path PATH
    [--layers L ...] [--batch-size B] [--conv-mode C] ... (see --help)

The model is loaded once, and each batch is prepared once for all layers. ``OUTPUT/exit{layer}/`` gets the answers,
the result record and the score of each question, as ``scripts/v1_5/eval/*.sh`` with METHOD=fixed would write them.
An interrupted run resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dyvte.benchmarks import get_benchmark
from dyvte.cli import run
from dyvte.decoding.policy import FixedExit
from dyvte.engine.answer import Answerer
from dyvte.engine.answers_file import AnswersFile
from dyvte.engine.model import model_name_of
from dyvte.engine.questions import Item
from dyvte.engine.run import answer_line, prepared_batches
from dyvte.report.record import make_record, write_scores
from dyvte.study.run import build_parser, open_with_policy, read_items, settings_of


def answer_at_layers(
    answerer: Answerer,
    items: Sequence[Item],
    files: dict[int, AnswersFile],
    image_folder: str,
    args: argparse.Namespace,
) -> None:
    """Write each layer's answers to the questions that its file does not hold yet."""
    assert answerer.handle is not None
    done, model_name = min(file.kept for file in files.values()), model_name_of(args.model_path)
    with tqdm(total=(len(items) - done) * len(files), desc="fixed exits", unit="q") as progress:
        for asked, batch in prepared_batches(
            items[done:], args.batch_size, answerer.chat, image_folder, args.workers
        ):
            for layer, file in files.items():
                if file.kept < done + len(batch):
                    answerer.handle.policy = FixedExit(layer)
                    answers = answerer.complete(batch)
                    lines = [answer_line(*pair, model_name) for pair in zip(asked, answers, strict=True)]
                    file.write(lines[max(0, file.kept - done) :])
                progress.update(len(batch))
            done += len(batch)


def sweep(args: argparse.Namespace) -> None:
    """Answer at all layers, then score each."""
    items, image_folder = read_items(args)
    answerer = open_with_policy(argparse.Namespace(**{**vars(args), "method": "none"}))
    config, files = answerer.chat.decoder_config, {}
    layers = dict.fromkeys(args.layers or range(config.num_hidden_layers))
    for layer in layers:
        FixedExit(layer).check(config.num_hidden_layers, config.hidden_size)
    with contextlib.ExitStack() as stack:
        for layer in layers:
            settings = settings_of(args, ("layers", "output"), method="fixed", exit_layer=layer)
            path = str(args.output / f"exit{layer}" / "merge.jsonl")
            file = AnswersFile(path, settings, model_name_of(args.model_path), items)
            files[layer] = stack.enter_context(file)
        answer_at_layers(answerer, items, files, image_folder, args)
    for layer, file in files.items():
        score_layer(args, layer, file.path)


def score_layer(args: argparse.Namespace, layer: int, answers: Path) -> None:
    """Write the record of one layer and the score of each question beside its answers."""
    benchmark, command = get_benchmark(args.name), ["python -m dyvte.study.fixed_exits", *sys.argv[1:]]
    settings = {"exit_layer": str(layer), "conv_mode": args.conv_mode}
    settings |= {name: str(getattr(args, name)) for name in ("batch_size", "temperature")}
    how: dict[str, Any] = {"method": "fixed", "settings": settings, "command": " ".join(command)}
    record, score = make_record(benchmark, args.data_dir, answers, model=args.model_path, **how)
    record.write(answers.with_name("record.json"))
    write_scores(score, answers.with_name("scores.json"))
    print(f"{benchmark.title}, exit after layer {layer}: {record.score:.2f}")


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(arguments, "Answer a benchmark at every fixed exit layer.", limited=False)
    parser.add_argument("--layers", type=int, nargs="+", help="zero-based layers (default: all)")
    run(parser, sweep, arguments)


if __name__ == "__main__":
    main()

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

from tqdm import tqdm

from dyvte.benchmarks import Benchmark, get_benchmark
from dyvte.cli import run
from dyvte.decoding.policy import FixedExit
from dyvte.engine.answer import Answerer
from dyvte.engine.answers_file import AnswersFile, run_settings
from dyvte.engine.model import model_name_of
from dyvte.engine.questions import Item
from dyvte.engine.run import answer_line, prepared_batches
from dyvte.report.record import make_record, write_scores
from dyvte.study.run import build_parser, open_with_policy, read_items


def answer_at_layers(
    answerer: Answerer,
    items: list[Item],
    files: dict[int, AnswersFile],
    image_folder: str,
    batch_size: int,
    model_name: str,
    workers: int | None = None,
) -> None:
    """Write each layer's answers to the questions that its file does not hold yet."""
    assert answerer.handle is not None
    done = min(file.kept for file in files.values())
    with tqdm(total=(len(items) - done) * len(files), desc="fixed exits", unit="q") as progress:
        for asked, batch in prepared_batches(items[done:], batch_size, answerer.chat, image_folder, workers):
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
    benchmark = get_benchmark(args.name)
    items, image_folder = read_items(args)
    model_name = model_name_of(args.model_path)
    answerer = open_with_policy(argparse.Namespace(**{**vars(args), "method": "none"}))
    config = answerer.chat.decoder_config
    layers = args.layers or range(config.num_hidden_layers)
    for layer in layers:
        FixedExit(layer).check(config.num_hidden_layers, config.hidden_size)
    with contextlib.ExitStack() as stack:
        files = {}
        for layer in layers:
            path = args.output / f"exit{layer}" / "merge.jsonl"
            file = AnswersFile(str(path), run_settings(_of_layer(args, layer)), model_name, items)
            files[layer] = stack.enter_context(file)
        answer_at_layers(answerer, items, files, image_folder, args.batch_size, model_name, args.workers)
    for layer in layers:
        _score(benchmark, args, layer)


def _of_layer(args: argparse.Namespace, layer: int) -> argparse.Namespace:
    """The settings that one layer's answers depend on."""
    shared = {key: value for key, value in vars(args).items() if key not in ("layers", "output")}
    return argparse.Namespace(**{**shared, "method": "fixed", "exit_layer": layer})


def _score(benchmark: Benchmark, args: argparse.Namespace, layer: int) -> None:
    folder = args.output / f"exit{layer}"
    settings = {
        "exit_layer": str(layer),
        "conv_mode": args.conv_mode,
        "batch_size": str(args.batch_size),
        "temperature": str(args.temperature),
    }
    record, score = make_record(
        benchmark,
        args.data_dir,
        folder / "merge.jsonl",
        model=args.model_path,
        method="fixed",
        settings=settings,
        command=" ".join(["python -m dyvte.study.fixed_exits", *sys.argv[1:]]),
    )
    record.write(folder / "record.json")
    write_scores(score, folder / "scores.json")
    print(f"{benchmark.title}, exit after layer {layer}: {record.score:.2f}")


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(arguments, "Answer a benchmark at every fixed exit layer.")
    parser.add_argument("--layers", type=int, nargs="+", help="zero-based layers (default: all)")
    run(parser, sweep, arguments)


if __name__ == "__main__":
    main()

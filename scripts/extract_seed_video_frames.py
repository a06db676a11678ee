"""Write the frame that stands for each video question of SEED-Bench, as LLaVA chose it (needs the extra video):

python scripts/extract_seed_video_frames.py --annotation-file SEED-Bench.json --video-root videos \\
    --output-dir SEED-Bench-video-image

Below the video root lie 20bn-something-something-v2/, EPIC-KITCHENS/ and BreakfastII_15fps_qvga_sync/. Frames that
are there already are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dyvte.cli import needs, run
from dyvte.engine.video import count_frames, open_video
from dyvte.io import read_json, whole_file

ACTION_RECOGNITION, ACTION_PREDICTION, PROCEDURE_UNDERSTANDING = 10, 11, 12
FOLDERS = {
    ACTION_RECOGNITION: "20bn-something-something-v2",
    ACTION_PREDICTION: "EPIC-KITCHENS",
    PROCEDURE_UNDERSTANDING: "BreakfastII_15fps_qvga_sync",
}


def frame_index(question_type: int, num_frames: int, fps: float, segment: list[float] | None = None) -> int:
    """The frame in the middle of a question's segment, counted from 0.

    Args:
        question_type: 10 takes the whole video but its last frame; the segment of 11 is in seconds, that of 12 in
            frames.
        fps: frames per second, on average.
        segment: start and end; the end is not in it.

    Raises:
        ValueError: no frame is left, or the segment or the type is not one that the rule knows.
    """
    if question_type == ACTION_RECOGNITION:
        first, end = 0, num_frames - 1
    elif question_type not in FOLDERS:
        raise ValueError(f"questions of type {question_type} have no video")
    elif not segment:
        raise ValueError("the question has no segment")
    elif question_type == ACTION_PREDICTION:
        first, end = (int(min(max(second * fps, 0), num_frames - 1)) for second in segment[:2])
    else:
        first, end = int(segment[0]), min(int(segment[1]), num_frames)
    if end <= first:
        raise ValueError(f"no frame from {first} to {end} (the video has {num_frames})")
    return first + int((end - first - 1) / 2)


def write_frame(question: dict[str, Any], root: Path, target: Path) -> None:
    """Write one question's frame as PNG; an interruption leaves no half of it behind.

    Raises:
        OSError, ValueError: the video is missing or broken, or the rule finds no frame in it.
    """
    question_type, name = question["question_type_id"], question["data_id"]
    if question_type == ACTION_PREDICTION:
        name = name.split("/")[-1]
    path = root / FOLDERS[question_type] / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    num_frames, fps = count_frames(path, decode=question_type == PROCEDURE_UNDERSTANDING)
    wanted = frame_index(question_type, num_frames, fps, question.get("segment"))
    with open_video(path) as video:
        for number, frame in enumerate(video.decode(video=0)):
            if number == wanted:
                with whole_file(target) as part:
                    frame.to_image().save(part, format="PNG")
                return
    raise ValueError(f"{path} ends before frame {wanted}")


def extract(options: argparse.Namespace) -> None:
    """Write the frames that are missing.

    Raises:
        ValueError: the annotations are broken, or a frame could not be written; each is named on stderr.
    """
    av = needs("av", "video")
    asked = read_json(options.annotation_file)["questions"]
    questions = [question for question in asked if question["data_type"] == "video"]
    failed = 0
    for question in tqdm(questions, disable=None):
        target = options.output_dir / f"{question['question_type_id']}_{question['question_id']}.png"
        if target.exists():
            continue
        try:
            write_frame(question, options.video_root, target)
        except (OSError, ValueError, IndexError, av.FFmpegError) as error:
            failed += 1
            print(f"{question['question_id']}: {error}", file=sys.stderr)
    if failed:
        raise ValueError(f"{failed} of {len(questions)} frames could not be written (see above)")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Extract the frames of SEED-Bench's video questions.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="SEED-Bench.json")
    parser.add_argument("--video-root", type=Path, required=True, help=f"holds {', '.join(FOLDERS.values())}")
    parser.add_argument("--output-dir", type=Path, required=True, help="SEED-Bench-video-image")
    run(parser, extract, arguments)


if __name__ == "__main__":
    main()

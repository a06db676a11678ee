"""Videos: which frames are read, what is refused, and how models of each kind take them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dyvte import FixedExit
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.processor_model import ProcessorModel
from dyvte.engine.questions import JSON_LINES, Item, Question
from dyvte.engine.run import answer_items, prepared_batches, question_parser, spans_of
from dyvte.engine.video import MAX_FRAMES, Sampling, Video, VideoFile, load_video
from dyvte.families import base
from llava.eval import run_llava

av = pytest.importorskip("av")
LENGTH, FPS = 24, 12
"""Frames of the test's video, and frames for each second."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video that becomes brighter with each frame."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(LENGTH):
            picture = av.VideoFrame.from_image(Image.new("RGB", (48, 32), (10 * number,) * 3))
            for packet in stream.encode(picture):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


@pytest.mark.parametrize(
    ("sampling", "total", "expected"),
    [
        (Sampling(4), 10, [0, 3, 6, 9]),
        (Sampling(1), 10, [0]),
        (Sampling(8), 3, [0, 1, 2]),
        (Sampling(per_second=2), 50, [0, 16, 33, 49]),  # two seconds at 25 for each
        (Sampling(per_second=0.1), 50, [0]),
    ],
)
def test_which_frames(sampling, total, expected):
    assert sampling.indices(total, 25) == expected


def test_frames_are_those_of_the_file(clip):
    video = load_video(clip, Sampling(5))
    assert video.indices == (0, 6, 12, 17, 23) and (video.fps, video.total) == (FPS, LENGTH)
    shades = [np.asarray(frame).mean() for frame in video.frames]
    assert np.allclose(shades, [10 * number for number in video.indices], atol=4)
    assert all(frame.mode == "RGB" and frame.size == (48, 32) for frame in video.frames)


def playlist(folder, clip):
    (folder / "part.ts").write_bytes(clip.read_bytes())
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts\n#EXT-X-ENDLIST\n"


def picture(folder, clip):
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    return (folder / "picture.png").read_bytes()


BROKEN = {
    "text": lambda folder, clip: b"not a video at all",
    "empty": lambda folder, clip: b"",
    "playlist": playlist,
    "picture": picture,
    "cut": lambda folder, clip: clip.read_bytes()[:900],
    "pointer": lambda folder, clip: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_video(kind, clip, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(BROKEN[kind](tmp_path, clip))
    with pytest.raises(ValueError, match=r"broken\.mp4") as caught:
        load_video(path, Sampling())
    assert "\n" not in str(caught.value)


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"video file not found: .*none\.mp4"):
        load_video(tmp_path / "none.mp4", Sampling())
    with pytest.raises(ValueError, match="leads out of the image folder"):
        load_video("../clip.mp4", Sampling(), tmp_path)
    with pytest.raises(ValueError, match=f"10 frames per second are 3333 frames, more than {MAX_FRAMES}"):
        Sampling(per_second=10).indices(10_000, 30)
    for wrong in (
        {"frames": 0},
        {"frames": MAX_FRAMES + 1},
        {"per_second": 0.0},
        {"per_second": float("nan")},
    ):
        with pytest.raises(ValueError, match="--frames"):
            Sampling(**wrong)


@pytest.mark.parametrize("name", ["checkpoint", "llava_hf", "llava_next", "qwen"])
def test_a_video_is_its_frames_for_models_of_images(name, clip, request):
    """Alone and in a batch with text, an image and two images; an exit drops all tokens of all frames."""
    chat = open_model(ModelOptions(str(request.getfixturevalue(name)), device="cpu"))
    chat.handle.policy = FixedExit(1)
    answerer = Answerer(chat, Generation(max_new_tokens=4))
    video = load_video(clip, Sampling(3))
    about = Question("What is it?", [video])
    same = Question("What is it?", list(video.frames))
    red = Image.new("RGB", (20, 30), (200, 10, 10))
    questions = [
        about,
        Question("How many?"),
        Question("What is it?", [red]),
        Question("In <video>, is there <image>?", [video, red]),
    ]
    together = answerer.ask(questions)
    alone = [answerer.ask([question])[0] for question in questions]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    (frames,) = answerer.ask([same])
    assert alone[0].text == frames.text and alone[0].report.tflops == frames.report.tflops
    one = alone[2].report
    assert one.tokens_per_layer[0] > one.tokens_per_layer[-1]
    seen = [answer.report.tokens_per_layer for answer in together]
    assert seen[0][-1] < seen[0][0] and seen[3][0] > seen[0][0] > seen[2][0]


def test_question_files_with_videos(llava_hf, clip, tmp_path):
    Image.new("RGB", (20, 30), (200, 10, 10)).save(tmp_path / "red.png")
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    rows = [
        {"question_id": 1, "video": "clip.mp4", "text": "What is it?"},
        {"question_id": 2, "image": "red.png", "text": "What is it?"},
        {"question_id": 3, "image": "red.png", "video": ["clip.mp4"], "text": "Is <image> in <video>?"},
    ]
    file = tmp_path / "questions.jsonl"

    def answers(*flags):
        given = ["--model-path", llava_hf, "--image-folder", tmp_path, "--question-file", file]
        given += ["--answers-file", tmp_path / "answers.jsonl", "--temperature", 0, "--max_new_tokens", 3]
        args = question_parser(JSON_LINES).parse_args([str(word) for word in [*given, *flags]])
        answer_items(args, JSON_LINES.read(args))
        return [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]

    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = [answer["metadata"]["tokens_per_layer"][0] for answer in answers("--frames", 2)]
    assert few[0] > few[1] and few[2] > few[0]
    more = [answer["metadata"]["tokens_per_layer"][0] for answer in answers("--frames", 3, "--batch-size", 3)]
    assert more[0] > few[0] and more[1] == few[1]
    rows[0]["video"], rows[1]["video"] = "none.mp4", 5
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="video file not found: .*none.mp4.*video must be a file name"):
        answers()


@pytest.mark.parametrize(
    ("kinds", "mixed", "apart"),
    [
        ("ivtiivv", [(0, 3), (3, 6), (6, 7)], [(0, 1), (1, 3), (3, 5), (5, 7)]),
        ("bbiiii", [(0, 3), (3, 6)], [(0, 1), (1, 2), (2, 5), (5, 6)]),
        ("ttvt", [(0, 3), (3, 4)], [(0, 3), (3, 4)]),
        ("", [], []),
    ],
)
def test_images_and_videos_are_batched_apart_where_they_must(kinds, mixed, apart):
    """Questions about an image, a video, text alone, or both."""
    video = VideoFile("a.mp4", Sampling())
    images = {"i": ("a.png",), "v": (video,), "t": (), "b": ("a.png", video)}
    items = [Item({"question_id": at}, "?", images[kind]) for at, kind in enumerate(kinds)]
    assert list(spans_of(items, 3, True)) == mixed
    assert list(spans_of(items, 3, False)) == apart


def test_a_family_that_takes_images_or_videos(llava_hf, clip, tmp_path, monkeypatch):
    """As SmolVLM does: a file with both is answered, one question about both is an error that says why."""
    monkeypatch.setitem(base._ADAPTERS, "llava", replace(base._ADAPTERS["llava"], mixes_videos=False))
    chat = open_model(ModelOptions(str(llava_hf), device="cpu"))
    assert chat.mixes_videos, "its processor takes frames as images"
    chat.handle.detach()
    chat.form.video_placeholder = "<video>"
    chat = ProcessorModel(chat.model, chat.form)
    assert not chat.mixes_videos
    red, video = Image.new("RGB", (20, 30), (200, 10, 10)), load_video(clip, Sampling(1))
    with pytest.raises(ValueError, match="type 'llava' take images or videos in one batch, not both"):
        chat.batch(["<image> <image>"], [red, video])
    red.save(tmp_path / "red.png")
    items = [Item({"question_id": at}, "?", ("red.png",) * count) for at, count in enumerate((1, 0, 1))]
    batches = prepared_batches(items, 2, chat, str(tmp_path))
    assert [len(batch) for _, batch in batches] == [2, 1]


def test_run_llava_asks_about_a_video(checkpoint, clip, capsys):
    flags = [
        "--model-path",
        checkpoint,
        "--query",
        "What is it?",
        "--temperature",
        "0",
        "--max_new_tokens",
        "3",
    ]
    flags += ["--video", clip, "--frames", "2", "--method", "fixed", "--exit-layer", "0"]
    answer = run_llava.eval_model(run_llava.build_parser().parse_args([str(flag) for flag in flags]))
    assert capsys.readouterr().out.startswith(answer.text)
    with pytest.raises(SystemExit):
        run_llava.build_parser().parse_args([*map(str, flags), "--image-file", "a.jpg"])


def test_processors_with_a_part_for_videos(tmp_path):
    """Qwen2-VL's own: a video is one place, its tokens are visual, and its times are those of the frames."""
    pytest.importorskip("torchvision")
    from transformers import Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl import Qwen2VLProcessor

    from tests.fixtures.processors import PATCH, qwen_processor, write_qwen

    write_qwen(tmp_path)
    images = qwen_processor()
    place = "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    template = images.chat_template.replace("{% else %}", place + "{% else %}", 1)
    assert template != images.chat_template
    videos = Qwen2VLVideoProcessor(patch_size=PATCH, min_pixels=64, max_pixels=1024)
    parts = images.image_processor, images.tokenizer, videos
    Qwen2VLProcessor(*parts, chat_template=template).save_pretrained(tmp_path)
    chat = open_model(ModelOptions(str(tmp_path), device="cpu"))
    assert chat.form.video_placeholder == "<|video_pad|>"
    grey = [Image.new("RGB", (48, 32), (20 * shade,) * 3) for shade in range(6)]
    video = Video(tuple(grey), tuple(range(0, 24, 4)), 12.0, 24)
    red = Image.new("RGB", (20, 30), (200, 10, 10))
    questions = [
        Question("What is it?", [video]),
        Question("How many?"),
        Question("Is <image> in <video> or <image>?", [red, video, red]),
        Question("What is it?", [red]),
    ]
    chat.handle.policy = FixedExit(1)
    answerer = Answerer(chat, Generation(max_new_tokens=4))
    batch = answerer.batch(questions[:1])
    assert batch.images["video_grid_thw"].tolist()[0][0] == 3  # two frames a patch
    together = answerer.ask(questions)
    for question, answer in zip(questions, together, strict=True):
        assert answerer.ask([question])[0].text == answer.text
    layers = [answer.report.tokens_per_layer for answer in together]
    visual = int((batch.input_ids == chat.tokenizer.convert_tokens_to_ids("<|video_pad|>")).sum())
    assert layers[0][0] - layers[0][-1] == visual > 0

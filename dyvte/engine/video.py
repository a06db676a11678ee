"""Videos as some of their frames, in the order of time.

Files are read by PyAV, which the extra ``video`` installs.

Called from :mod:`dyvte.engine`, :mod:`dyvte.report`, :mod:`dyvte.study`, :mod:`llava` and
``scripts/extract_seed_video_frames.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dyvte.cli import needs
from dyvte.engine.images import path_inside, to_rgb
from dyvte.io import check_file

DEFAULT_FRAMES = 8
"""Of a video where nobody says how many: as LLaVA-NeXT-Video was trained."""
MAX_FRAMES = 768
"""Of one video: what Qwen2.5-VL takes."""
FORMATS = "mov,mp4,m4a,3gp,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif"
"""FFmpeg's containers that are tried on a file, whatever its name. Others, such as playlists, open further files."""


@dataclass(frozen=True)
class Video:
    """Frames of a video.

    Attributes:
        frames: RGB.
        indices: the number of each frame in its file, from 0.
        fps: frames per second of the file.
        total: frames of the file.
    """

    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    fps: float
    total: int


Visual = Image.Image | Video
"""What stands at one place of a prompt."""


def frames_of(visuals: Sequence[Visual]) -> list[Image.Image]:
    """Images, with the frames of each video in its place: for models that take images alone."""
    found: list[Image.Image] = []
    for visual in visuals:
        found += visual.frames if isinstance(visual, Video) else [visual]
    return found


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are taken.

    Attributes:
        frames: so many, at equal distances from the first frame to the last; all of a video that has fewer.
        per_second: instead, so many for each second.

    Raises:
        ValueError: there is to be no frame, or more than :data:`MAX_FRAMES`.
    """

    frames: int = DEFAULT_FRAMES
    per_second: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= MAX_FRAMES:
            raise ValueError(f"--frames must be 1 to {MAX_FRAMES}, not {self.frames}")
        if self.per_second is not None and not self.per_second > 0:
            raise ValueError(f"--frames-per-second must be positive, not {self.per_second}")

    def indices(self, total: int, fps: float) -> list[int]:
        """Numbers of the frames to take, rising, of a video of ``total`` frames.

        Raises:
            ValueError: they are more than :data:`MAX_FRAMES`.
        """
        count = self.frames
        if self.per_second is not None:
            count = max(1, round(total / fps * self.per_second))
        count = min(count, total)
        if count > MAX_FRAMES:
            raise ValueError(
                f"{self.per_second:g} frames per second are {count} frames, more than {MAX_FRAMES}: take fewer"
            )
        return [round(at * (total - 1) / max(count - 1, 1)) for at in range(count)]


DEFAULT = Sampling()


@dataclass(frozen=True)
class VideoFile:
    """A video of a question, not read yet: its name within the image folder, and which frames to take."""

    name: str
    sampling: Sampling


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of :class:`Sampling`."""
    parser.add_argument(
        "--frames",
        type=int,
        default=DEFAULT_FRAMES,
        help="of each video, at equal distances (default: %(default)s)",
    )
    parser.add_argument("--frames-per-second", type=float, help="of each video, instead of --frames")


def sampling_of(args: argparse.Namespace) -> Sampling:
    """What the flags ask for; the default where a command line has no such flags."""
    return Sampling(getattr(args, "frames", DEFAULT_FRAMES), getattr(args, "frames_per_second", None))


def load_video(source: str | Path, sampling: Sampling, folder: str | Path | None = None) -> Video:
    """Read some frames of a video file.

    Args:
        folder: when given, ``source`` is a path inside this folder, and nothing outside it is read.

    Raises:
        FileNotFoundError: when the file does not exist.
        MissingExtra: PyAV is not installed.
        ValueError: when the path leaves ``folder``, or the file is no whole video; the message names it.
    """
    av: Any = needs("av", "video")
    path = Path(source).expanduser() if folder is None else path_inside(folder, str(source))
    check_file(path, "video")
    try:
        total, fps = count_frames(path)
        wanted = sampling.indices(total, fps)
        return Video(tuple(_decoded(path, wanted)), tuple(wanted), fps, total)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot read video {path}: {reason}") from error


def open_video(path: Path) -> Any:
    """PyAV's container of a video file, of a known format. Use as a context manager.

    Raises:
        av.FFmpegError: it is none.
        ValueError: it holds no pictures.
    """
    av: Any = needs("av", "video")
    video = av.open(str(path), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    if not video.streams.video:
        video.close()
        raise ValueError("it holds no pictures")
    return video


def count_frames(path: Path, decode: bool = False) -> tuple[int, float]:
    """Number of frames, and frames per second on average; counted by packets, or by decoding all.

    Raises:
        av.FFmpegError, ValueError: it is no video, or has no frames.
    """
    with open_video(path) as video:
        stream = video.streams.video[0]
        fps = float(stream.average_rate or 0)
        units = video.decode(stream) if decode else (packet for packet in video.demux(stream) if packet.size)
        total = sum(1 for _ in units)
    if not total or not fps > 0:
        raise ValueError(f"it has {total} frames, {fps:g} for each second")
    return total, fps


def _decoded(path: Path, wanted: Sequence[int]) -> list[Image.Image]:
    """Frames by their numbers, which rise."""
    frames: list[Image.Image] = []
    with open_video(path) as video:
        for number, frame in enumerate(video.decode(video=0)):
            if number == wanted[len(frames)]:
                frames.append(to_rgb(frame.to_image()))
            if len(frames) == len(wanted):
                return frames
    raise ValueError(f"it ends before frame {wanted[len(frames)]}")

"""Batches that several threads read: the order, how many wait, and what a failure leaves."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image

from dyvte.engine.questions import JSON_LINES, Item
from dyvte.engine.run import default_workers, prepared_batches, question_parser

COUNT = 11


class Reader:
    """Stands in for a model: batches are the prompts; notes how many are made, and by how many threads at once."""

    mixes_videos = True

    def __init__(self):
        self.made, self.at_once, self.most = 0, 0, 0
        self._lock = threading.Lock()

    def prompt(self, question, history=()):
        return question.text

    def batch(self, prompts, images):
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        time.sleep(0.02 if "0" in prompts[0] else 0.005)  # the first one takes longest
        with self._lock:
            self.at_once -= 1
            self.made += 1
        return list(zip(prompts, [image.size for image in images], strict=True))


def readers():
    """Threads that still read."""
    return [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.fixture
def items(tmp_path):
    for index in range(COUNT):
        Image.new("RGB", (4 + index, 5)).save(tmp_path / f"{index}.png")
    return [Item({"question_id": index}, f"q{index}", (f"{index}.png",)) for index in range(COUNT)]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_batches_come_in_order_and_few_wait(items, tmp_path, workers):
    reader, given = Reader(), []
    for asked, batch in prepared_batches(items, 2, reader, str(tmp_path), workers):
        given += zip(asked, batch, strict=True)
        time.sleep(0.01)
        assert reader.made <= -(-len(given) // 2) + workers  # each worker holds one, the caller another
    assert given == [(item, (item.text, (4 + index, 5))) for index, item in enumerate(items)]
    assert reader.most <= max(1, workers)


def test_two_workers_read_at_once(items, tmp_path):
    class Both(Reader):
        met = threading.Barrier(2, timeout=60)

        def batch(self, prompts, images):
            self.met.wait()  # breaks where nobody else reads
            return super().batch(prompts, images)

    assert len(list(prepared_batches(items[:4], 1, Both(), str(tmp_path), 2))) == 4


def test_the_first_trouble_in_order_is_raised_and_nothing_is_read_on(items, tmp_path):
    (tmp_path / "4.png").unlink()
    (tmp_path / "3.png").write_bytes(b"no image")
    reader, given = Reader(), []
    with pytest.raises(ValueError, match="^question 3: cannot read image .*3.png"):
        for asked, _ in prepared_batches(items, 1, reader, str(tmp_path), 3):
            given += asked
    assert given == items[:3] and reader.made < COUNT and not readers()


def test_a_caller_may_stop(items, tmp_path):
    reader = Reader()
    batches = prepared_batches(items, 1, reader, str(tmp_path), 2)
    next(batches)
    batches.close()
    assert reader.made <= 4 and not readers()


def test_how_many(monkeypatch, capsys):
    parser = question_parser(JSON_LINES)
    assert parser.parse_args([]).workers is None
    assert parser.parse_args(["--workers", "0"]).workers == 0
    for cores, workers in ((1, 1), (2, 1), (3, 2), (16, 4), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert default_workers() == workers
    with pytest.raises(SystemExit):
        parser.parse_args(["--workers=-1"])
    assert "'-1' is not a number of workers" in capsys.readouterr().err

"""The server as clients see it, through OpenAI's own client: batches, streams, limits, clients that leave."""

from __future__ import annotations

import base64
import json
import shlex
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from PIL import Image

from dyvte.cli import run
from dyvte.engine.options import open_answerer
from dyvte.engine.questions import Question
from llava.serve import api, batching, fetch
from tests.serve.conftest import TINY, data_url, eventually, image_part, serving, user

SHORT = "\nAnswer the question using a single word or phrase."


def picture() -> Image.Image:
    return Image.open("playground/tiny/example.jpg").convert("RGB")


def ask(client, messages, **more):
    return client.chat.completions.create(model="served", messages=messages, **more)


def streamed(client, messages, **more):
    """(text, finish reason, usage) of a streamed answer."""
    options = {"include_usage": True}
    chunks = list(ask(client, messages, stream=True, stream_options=options, **more))
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    reasons = [choice.finish_reason for choice in choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    return "".join(choice.delta.content or "" for choice in choices), reasons[-1], chunks[-1].usage


def whole(client, messages, **more):
    """The same of an answer that comes as one."""
    done = ask(client, messages, **more)
    return done.choices[0].message.content, done.choices[0].finish_reason, done.usage


def conversations() -> list[list[dict]]:
    """32: about one image, two, or none; of one turn or two."""
    image, turned = picture(), picture().rotate(90)
    made: list[list[dict]] = []
    for number in range(8):
        color = ("red", "green", "blue", "yellow")[number % 4]
        made.append([user(f"What digit is {color}?{SHORT}", image)])
        made.append([user(f"What is {number} plus 3?{SHORT}")])
        first = user(f"How many digits are there?{SHORT}", turned)
        made.append([first, {"role": "assistant", "content": "5"}, user(f"What digit is {color}?{SHORT}")])
        made.append([user(f"How many digits are {color}?{SHORT}", image, turned)])
    return made


def test_32_at_once_are_answered_as_one_by_one(tiny):
    asked = conversations()
    kinds = [streamed if number % 3 == 0 else whole for number in range(len(asked))]
    alone = [whole(tiny, messages) for messages in asked]
    with ThreadPoolExecutor(32) as pool:
        waiting = [pool.submit(kind, tiny, messages) for kind, messages in zip(kinds, asked, strict=True)]
        together = [future.result() for future in waiting]
    for (text, reason, usage), (other, other_reason, other_usage) in zip(alone, together, strict=True):
        assert (text, reason) == (other, other_reason) and text
        assert usage.x_dyvte["batch_size"] == 1
        told = [{**u.model_dump(), "x_dyvte": {**u.x_dyvte, "batch_size": 0}} for u in (usage, other_usage)]
        assert told[0] == told[1]
    measured = [usage.x_dyvte for _, _, usage in together]
    assert max(m["batch_size"] for m in measured) >= 8
    assert len({m["exit_layer"] for m in measured}) > 2, "samples of a batch exit at layers of their own"
    assert any(m["kv_bytes_saved"] > 0 and m["saved_tflops"] > 0 for m in measured)


def test_answers_are_the_engines(tiny):
    flags = f"{TINY} --device cpu --max-new-tokens 16"
    args = api.build_parser().parse_args(shlex.split(flags))
    answerer = open_answerer(args, None)
    for color in ("red", "green"):
        text = f"What digit is {color}?{SHORT}"
        (expected,) = answerer.ask([Question(text, [picture()])])
        content, _, usage = whole(tiny, [user(text, picture())])
        assert content == expected.text
        assert usage.x_dyvte["exit_layer"] == expected.report.exit_layer
        assert usage.prompt_tokens == expected.report.prompt_tokens


def test_lengths_and_stops_are_each_requests_own(random):
    messages = [user("How many digits are there?", Image.new("RGB", (30, 20), (9, 99, 200)))]
    full, reason, usage = whole(random, messages, max_tokens=60)
    assert reason == "length" and usage.completion_tokens == 60
    stop = next(full[at : at + 2] for at in range(len(full) // 2, len(full)) if full[at : at + 2].isalnum())
    wanted = [{"max_tokens": 7}, {"max_completion_tokens": 60, "stop": [stop, "@@"]}, {"max_tokens": 60}]
    for kind in (whole, streamed):
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(kind, random, messages, **more) for more in wanted]
            short, stopped, long = (future.result() for future in waiting)
        assert full.startswith(short[0]) and short[1] == "length" and short[2].completion_tokens == 7
        assert stopped[0] == full[: full.index(stop)].rstrip() and stopped[1] == "stop"
        assert stopped[2].completion_tokens < 60 and long[0] == full


def test_sampling_is_batched_apart(random):
    with ThreadPoolExecutor(4) as pool:
        wanted = [{"temperature": 1.5}, {"temperature": 1.5}, {}, {"temperature": 0.7, "top_p": 0.9}]
        waiting = [pool.submit(whole, random, [user("What colour?")], max_tokens=40, **w) for w in wanted]
        texts = [future.result()[0] for future in waiting]
    assert texts[2] == whole(random, [user("What colour?")], max_tokens=40)[0]
    assert len(set(texts)) == 4


def test_system_messages(random, tiny):
    asked = [user("What colour is the ball?")]
    plain, spoken = (
        whole(random, [*before, *asked], max_tokens=20)[2].prompt_tokens
        for before in ([], [{"role": "system", "content": "red"}])
    )
    assert spoken < plain, "it stands in place of the template's own"
    with pytest.raises(openai.BadRequestError, match="no place for a system message"):
        ask(tiny, [{"role": "system", "content": "Be brief."}, *asked])


def test_the_order_of_text_and_image(tiny):
    text, image = {"type": "text", "text": f"What digit is red?{SHORT}"}, image_part(picture())
    told = [whole(tiny, [{"role": "user", "content": parts}]) for parts in ([text, image], [image, text])]
    assert told[0][2].prompt_tokens == told[1][2].prompt_tokens and told[0][0] == told[1][0]
    between = [{"type": "text", "text": "Compare"}, image, text]
    assert whole(tiny, [{"role": "user", "content": between}])[2].x_dyvte["visual_tokens"] == 81


def test_models_and_health(random):
    assert [model.id for model in random.models.list()] == ["served"]
    assert random.models.retrieve("served").owned_by == "dyvte"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o' here, only 'served'") as error:
        random.models.retrieve("gpt-4o")
    assert error.value.code == "model_not_found"
    assert health(random) == {"status": "ok", "model": "served", "requests": 0, "megapixels": 0.0}


def health(client) -> dict:
    with urllib.request.urlopen(f"{client.base_url}/../../health".replace("/v1//../..", "")) as response:
        return json.load(response)


@pytest.fixture
def taken(monkeypatch):
    """How many tokens answers took."""
    taken = []
    take = batching._Answer.take

    def counted(answer, token):
        if not (ended := take(answer, token)):
            taken.append(token)
        return ended

    monkeypatch.setattr(batching._Answer, "take", counted)
    return taken


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_place(random, taken, stream):
    messages = [user("How many digits are there?")]
    if stream:
        with ask(random, messages, stream=True, max_tokens=900) as chunks:
            next(iter(chunks))
    else:
        with pytest.raises(openai.APITimeoutError):
            ask(random.with_options(timeout=0.3), messages, max_tokens=900)
    eventually(lambda: not health(random)["requests"])
    whole(random, messages, max_tokens=1)
    assert len(taken) < 800, "the answer went on, though nobody listened"


def test_too_many_at_once_are_told_so(random, monkeypatch):
    messages, go_on, take = [user("How many digits are there?")], threading.Event(), batching._Answer.take
    monkeypatch.setattr(batching._Answer, "take", lambda *args: go_on.wait() and take(*args))
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(whole, random, messages, max_tokens=2) for _ in range(4)]
        eventually(lambda: health(random)["requests"] == 4)
        with pytest.raises(openai.RateLimitError, match="busy with 4 requests"):
            ask(random, messages, max_tokens=1)
        go_on.set()
        assert all(future.result()[2].completion_tokens == 2 for future in waiting)
    assert ask(random, messages, max_tokens=1).usage.completion_tokens == 1


def test_images_of_too_many_pixels_at_once_are_told_so(random, monkeypatch):
    go_on, take = threading.Event(), batching._Answer.take
    monkeypatch.setattr(batching._Answer, "take", lambda *args: go_on.wait() and take(*args))
    large = [user("How many digits are there?", Image.new("RGB", (2000, 1750)))]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(whole, random, large, max_tokens=2)
        eventually(lambda: health(random)["megapixels"] == 3.5)
        with pytest.raises(openai.RateLimitError, match="images of up to 6 megapixels"):
            ask(random, large, max_tokens=1)
        go_on.set()
        assert waiting.result()[2].completion_tokens == 2
    eventually(lambda: not health(random)["megapixels"])
    assert ask(random, large, max_tokens=1).usage.completion_tokens == 1


def test_a_prompt_that_fails_leaves_its_batch_alone(checkpoint):
    flags = f"--model-path {checkpoint} --served-model-name served --batch-wait-ms 300"
    wanted = [user("How many?"), user("red ball " * 2000), user("What colour?")]
    with serving(flags) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(whole, client, [message], max_tokens=5) for message in wanted]
        with pytest.raises(
            openai.BadRequestError, match="and prompt and answer together may have 1024"
        ) as error:
            waiting[1].result()
        assert error.value.code == "context_length_exceeded"
        assert all(waiting[at].result()[2].completion_tokens == 5 for at in (0, 2))
        answer = whole(client, [user("digit " * 100)], max_tokens=5000)
        assert answer[1] == "length" and answer[2].total_tokens == 1024


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_fault_of_the_server_is_an_error_without_details(random, monkeypatch, caplog, stream):
    def fails(*args):
        raise RuntimeError("/a/path/of/the/server")

    monkeypatch.setattr(batching._Answer, "start", fails)
    with pytest.raises(openai.InternalServerError, match="its log says why") as error:
        ask(random, [user("What?")], max_tokens=3, stream=stream)
    assert "/a/path" not in str(error.value) and "/a/path" in caplog.text
    monkeypatch.undo()
    assert whole(random, [user("What?")], max_tokens=3)[1] == "length"


def test_a_defect_is_an_error_without_details_too(random, monkeypatch):
    monkeypatch.setattr(api, "_generation", None)
    with pytest.raises(openai.InternalServerError, match="its log says why"):
        ask(random, [user("What?")])
    assert not health(random)["requests"]


def test_images_at_addresses(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "picture.png").write_bytes(base64.b64decode(data_url(picture()).partition(",")[2]))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    flags = f"--model-path {checkpoint} --served-model-name served --allow-urls"
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site, serving(flags) as client:
        threading.Thread(target=site.serve_forever).start()
        address = f"http://127.0.0.1:{site.server_port}/picture.png"
        messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]
        with pytest.raises(openai.BadRequestError, match=r"messages\[0\].*127.0.0.1 is not a public host"):
            ask(client, messages)
        monkeypatch.setattr(fetch, "is_public", lambda address: True)
        assert whole(client, messages, max_tokens=2)[2].x_dyvte["visual_tokens"]
        site.shutdown()


@pytest.mark.parametrize("family", ["llava_hf", "qwen"])
def test_a_model_of_transformers(family, request):
    folder = request.getfixturevalue(family)
    image = Image.radial_gradient("L").resize((40, 24)).convert("RGB")
    asked = [[user("What is it?", image)], [user("How many?")], [user("Which is it, and why?", image, image)]]
    asked += [[{"role": "system", "content": "Be brief."}, *messages] for messages in asked]
    with serving(f"--model-path {folder} --served-model-name served --batch-wait-ms 200") as client:
        alone = [whole(client, messages, max_tokens=12)[0] for messages in asked]
        with ThreadPoolExecutor(6) as pool:
            waiting = [pool.submit(streamed, client, messages, max_tokens=12) for messages in asked]
            together = [future.result() for future in waiting]
        assert [text for text, *_ in together] == alone
        assert max(usage.x_dyvte["batch_size"] for *_, usage in together) > 1
        if family == "qwen":
            with pytest.raises(openai.BadRequestError, match="have places for 2 images, but come with 1"):
                ask(client, [user("What is <|image_pad|>?", image)])


def test_a_language_model_answers_text(base):
    with serving(f"--model-path {base} --served-model-name served") as client:
        _, _, usage = whole(client, [user("How many digits are there?")], max_tokens=5)
        assert usage.x_dyvte is None and usage.completion_tokens == 5 and usage.prompt_tokens > 5
        with pytest.raises(openai.BadRequestError, match="takes no images"):
            ask(client, [user("What is it?", picture())])


def command(*flags: str) -> str:
    """What the command ends with."""
    with pytest.raises(SystemExit) as end:
        run(api.build_parser(), api.main, ["--device", "cpu", *flags])
    message = str(end.value.code)
    assert "\n" not in message
    return message


def test_a_taken_port_is_one_line_before_the_model_is_loaded(checkpoint, monkeypatch):
    monkeypatch.setattr(api, "make_server", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"cannot listen at 127.0.0.1, port {port} (Address already in use): choose others" in command(
            *("--model-path", str(checkpoint), "--port", port)
        )
    assert "cannot listen at" in command("--model-path", str(checkpoint), "--port", "99999")
    assert "cannot listen at" in command(
        "--model-path", str(checkpoint), "--port", "0", "--host", "192.0.2.1"
    )


def test_wrong_arguments_are_one_line(checkpoint):
    assert "nowhere/at/all" in command("--model-path", "nowhere/at/all", "--port", "0")
    assert "--batch-size must be positive" in command(
        *("--model-path", str(checkpoint), "--port", "0", "--batch-size", "0")
    )
    assert "method dyvte needs gates" in command(
        *("--model-path", str(checkpoint), "--port", "0", "--method", "dyvte")
    )

"""The demo as its visitors meet it: through gradio's client, by raw requests that mean harm, in a browser."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image

from llava.serve.demo import build_parser, open_session

pytest.importorskip("gradio")
import httpx
from gradio_client import Client, handle_file

from llava.serve.demo_page import LOOKS, page_of
from llava.serve.demo_server import MAX_WAITING, launch

TINY = "playground/tiny"
EXAMPLE = f"{TINY}/example.jpg"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def serve(example, *flags):
    """A served page: the session behind it, its address, and the page itself."""
    session, controls = open_session(build_parser().parse_args([*map(str, flags), "--device", "cpu"]))
    page = page_of(session, "a model", controls, example)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return session, launch(page, "127.0.0.1", port, **LOOKS).rstrip("/"), page


@pytest.fixture(scope="module", autouse=True)
def own_limits():
    """What a demo sets for its process is put back."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tiny-LLaVA, in an environment that asks for all that the demo must not do."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SHARE": "True", "ALLOWED_PATHS": "/", "ANALYTICS_ENABLED": "True"}.items():
            patch.setenv(f"GRADIO_{name}", value)
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        session, address, page = serve(EXAMPLE)
        yield session, address, page
        page.close()


@pytest.fixture(scope="module")
def talkative(checkpoint):
    """A random model whose answers are long, and slow: on a busy machine a browser sees them begin late."""
    session, address, page = serve(None, "--model-path", checkpoint, "--max-new-tokens", 400)
    session._answerer.chat.model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    yield session, address, page
    page.close()


def ask(
    client, image=EXAMPLE, text="What digit is red?", method="dyvte", threshold=0.5, layer=8, settings=""
):
    return client.submit(handle_file(image), text, method, threshold, layer, settings, api_name="/ask")


def said(conversation):
    return [message["content"][0]["text"] for message in conversation]


def test_values(tiny):
    client = Client(tiny[1], verbose=False)
    job = ask(client)
    text, plain, exiting, table, gates, tokens = job.result()
    assert text == "" and said(plain) == said(exiting) == ["What digit is red?", "5"]
    assert len(job.outputs()) >= 3, "text comes before the end"
    assert table.startswith("The image leaves after **layer 8** of 0 to 19: the same answer.")
    assert "| Prefill, GFLOPs | 0.573 | 0.339 | 41% |" in table
    bars = {row[0]: row[1:] for row in gates["value"]["data"]}
    assert [str(layer) for layer in range(20)] == list(bars) and bars["8"][1] == "image leaves"
    assert bars["8"][0] > 0.5 > bars["7"][0] and bars["9"] == [0, "not asked"]
    assert [row[1] for row in tokens["value"]["data"] if row[2] == "visual"] == [81] * 9 + [0] * 11
    # the second turn goes on, with another method
    _, plain, exiting, table, gates, tokens = ask(
        client, text="And how many?", method="fixed", layer=3
    ).result()
    assert said(plain)[:2] == ["What digit is red?", "5"] and len(plain) == len(exiting) == 4
    assert "layer 3" in table and "| Fixed exit |" in table and gates["visible"] is False
    assert [row[1] for row in tokens["value"]["data"] if row[2] == "visual"] == [81] * 4 + [0] * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "Type a question."),
        ({"text": "x" * 5000}, "The question has more than 4000 characters."),
        ({"method": "fastv", "settings": "k=x"}, "fastv's k must be a whole number"),
        ({"method": "none"}, "not in the list of choices"),
        ({"threshold": 7}, "greater than maximum"),
        ({"layer": 20}, "greater than maximum"),
        ({"threshold": None}, "Threshold: give a number"),  # an emptied field
    ],
)
def test_errors_say_what_to_do(tiny, changes, message):
    with pytest.raises(Exception, match=message) as error:
        ask(Client(tiny[1], verbose=False), **changes).result()
    assert "/" not in str(error.value)


def test_a_failing_model_tells_the_log_alone(tiny, monkeypatch, caplog):
    def fail(*given):
        raise RuntimeError("cannot open /srv/secret")

    monkeypatch.setattr(tiny[0]._answerer.chat, "generate", fail)
    with pytest.raises(Exception, match="the server's log says why") as error:
        ask(Client(tiny[1], verbose=False)).result()
    assert "secret" not in str(error.value) and "cannot open /srv/secret" in caplog.text


def raw(address, image):
    """What the page's function answers to an image as a request describes it, without gradio's client."""
    call = f"{address}/gradio_api/call/ask"
    data = [image, "What digit is red?", "dyvte", 0.5, 8, ""]
    with httpx.Client(timeout=60) as client:
        event = client.post(call, json={"data": data}).raise_for_status().json()["event_id"]
        return client.get(f"{call}/{event}").text


def upload(address, path):
    files = {"files": (path.name, path.read_bytes())}
    return httpx.post(f"{address}/gradio_api/upload", files=files, timeout=60)


def described(**fields):
    return {**fields, "meta": {"_type": "gradio.FileData"}}


def test_no_file_of_the_server_is_an_image(tiny, tmp_path):
    _, address, _ = tiny
    outside = tmp_path / "outside.png"
    Image.new("RGB", (40, 40)).save(outside)
    for path in (outside, "/etc/passwd", "playground/tiny/example.jpg", "../../etc/passwd"):
        answer = raw(address, described(path=str(path)))
        assert "This is no image" in answer and "/" not in answer.partition("data:")[2], answer


def test_no_file_of_the_server_is_read(tiny, tmp_path):
    _, address, _ = tiny
    secret = tmp_path / "secret.txt"
    secret.write_text("secret words")
    for path in (secret, f"{TINY}/README.md", "/etc/hostname", "pyproject.toml", "../../etc/hostname"):
        answer = httpx.get(f"{address}/gradio_api/file={path}")
        assert answer.status_code in (403, 404) and "secret words" not in answer.text


def test_no_address_is_fetched(tiny):
    _, address, _ = tiny
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(2)

        def listen():
            with contextlib.suppress(TimeoutError):
                asked.append(listener.accept())

        waiting = threading.Thread(target=listen)
        waiting.start()
        inside = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for url in (inside, "http://example.com/x.png", "file:///etc/passwd", "HTTPS://example.com/x.png"):
            assert "addresses are not read" in raw(address, described(path=url, url=url)), url
        assert "event: error" in raw(address, described(path="x.png", url=inside))
        waiting.join()
    assert asked == []


def test_uploads_have_limits(tiny, tmp_path):
    _, address, _ = tiny
    big = tmp_path / "big.png"
    big.write_bytes(bytes(10 * 2**20 + 1))
    assert upload(address, big).status_code == 413
    for name, picture in (
        ("bomb.png", Image.new("1", (10_001, 5_000))),
        ("ok.png", Image.new("1", (7_000, 7_000))),
    ):
        picture.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size < 10**6
        (path,) = upload(address, tmp_path / name).json()
        answer = raw(address, described(path=path))
        assert ("more than 50 megapixels" in answer) == (name == "bomb.png"), answer
        assert ("event: complete" in answer) == (name == "ok.png")
    for name, content in (("a.png", b"no image"), ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")):
        (tmp_path / name).write_bytes(content)
        (path,) = upload(address, tmp_path / name).json()
        answer = raw(address, described(path=path))
        assert "no image" in answer or "unknown format" in answer
        assert path not in answer and str(tmp_path) not in answer
    in_words = described(path="x.png", url="data:image/png;base64,AAAA")
    assert "event: error" in raw(address, in_words)
    long = httpx.post(f"{address}/gradio_api/call/ask", json={"data": ["x" * 12_000_000]})
    assert long.status_code == 413 and "12 MB" in long.text
    unknown = httpx.post(f"{address}/gradio_api/call/ask", content=iter([b"{}"]))
    assert unknown.status_code == 411


def test_the_page_is_private(tiny):
    _, address, page = tiny
    assert address.startswith("http://127.0.0.1:") and page.share is False and page.share_url is None
    assert page.server.config.host == "127.0.0.1"
    config = page.config
    assert page.analytics_enabled is False and config["analytics_enabled"] is False
    assert page.allowed_paths == []
    for path in ("monitoring", "gradio_api/runs", "gradio_api/proxy=http://example.com"):
        assert httpx.get(f"{address}/{path}").status_code in (400, 403, 404), path


def test_the_queue_has_an_end(tiny):
    session, address, _ = tiny
    release = threading.Event()
    session._worker.submit(release.wait)
    data = {"data": [None, "What?", "dyvte", 0.5, 8, ""]}
    (path,) = upload(address, Path(EXAMPLE)).json()
    data["data"][0] = described(path=path)
    try:
        codes = [
            httpx.post(f"{address}/gradio_api/call/ask", json=data).status_code
            for _ in range(MAX_WAITING + 4)
        ]
    finally:
        release.set()
    assert codes[0] == 200 and codes[-1] == 503 and codes.count(200) in (MAX_WAITING, MAX_WAITING + 1)


def idle_after(session, seconds):
    """Whether the model has nothing to do after some seconds."""
    done = session._worker.submit(int)
    try:
        done.result(timeout=seconds)
    except TimeoutError:
        return False
    return True


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium or google-chrome on PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """A function that opens an address in a page of its own; hosts asked and console errors are noted on it."""
    contexts = []

    def opened(address):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(60_000)
        tab.hosts, tab.errors = set(), []
        tab.on("request", lambda request: tab.hosts.add(re.sub(r"^(\w+://[^/]*).*", r"\1", request.url)[:40]))
        tab.on("console", lambda message: message.type == "error" and tab.errors.append(message.text))
        tab.goto(address)
        tab.get_by_role("button", name="Ask").wait_for()
        return tab

    yield opened
    for context in contexts:
        context.close()


def chart(tab, name, part):
    """Values by layer, as the bars of a chart are labelled for those who cannot see them."""
    bars = tab.locator(f"#{name} path[aria-roledescription=bar]")
    labels = bars.evaluate_all("bars => bars.map(bar => bar.getAttribute('aria-label'))")
    found = [re.fullmatch(r"layer: (\d+); [a-z ]+: (\S+); part: (.+)", label) for label in labels]
    return {int(match[1]): float(match[2]) for match in found if match[3] == part}


def eventually(holds):
    """Whether something becomes true while the page draws."""
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def test_a_visitor_clicks_through(tiny, visit):
    tab = visit(tiny[1])
    assert (
        tab.get_by_label("number input for Threshold").is_visible()
        and not tab.get_by_label("number input for Exit layer").is_visible()
    )
    tab.get_by_role("button", name="Ask").click()
    tab.get_by_text("Choose an image first.").wait_for()

    tab.set_input_files("input[type=file]", EXAMPLE)
    tab.locator("img[src*='example.jpg']").first.wait_for()
    tab.get_by_label("Question").fill("What digit is red?")
    tab.get_by_role("button", name="Ask").click()
    tab.locator("#costs").get_by_text(
        "The image leaves after layer 8 of 0 to 19: the same answer."
    ).wait_for()
    assert tab.locator(".bot").all_inner_texts() == ["5", "5"]
    assert eventually(lambda: list(chart(tab, "gates", "image leaves")) == [8])
    leaves, stays = chart(tab, "gates", "image leaves"), chart(tab, "gates", "image stays")
    assert leaves[8] > 0.5 and sorted(stays) == list(range(8)) and max(stays.values()) < 0.5
    visual = {layer: 81 if layer <= 8 else 0 for layer in range(20)}
    assert eventually(lambda: chart(tab, "tokens", "visual") == visual)

    tab.get_by_label("Method").click()
    tab.get_by_role("option", name="Fixed exit").click()
    tab.get_by_label("number input for Exit layer").fill("3")
    tab.get_by_text("With Fixed exit").wait_for()
    tab.get_by_label("number input for Threshold").wait_for(state="hidden")
    tab.get_by_role("button", name="How many digits are there?").click()
    tab.get_by_label("Question").press("Enter")
    tab.locator("#costs").get_by_text("The image leaves after layer 3 of 0 to 19").wait_for()
    assert len(tab.locator(".bot").all()) == 4, "the second turn of one conversation"
    tab.locator("#gates").wait_for(state="hidden")
    visual = {layer: 81 if layer <= 3 else 0 for layer in range(20)}
    assert eventually(lambda: chart(tab, "tokens", "visual") == visual)

    tab.locator("button[aria-label='Clear']").first.click()
    tab.locator(".bot").first.wait_for(state="detached")
    assert tab.hosts == {tiny[1]}, "no other host is asked"
    assert tab.errors == []


def ask_and_wait_for_text(tab):
    tab.set_input_files("input[type=file]", EXAMPLE)
    tab.locator("img[src*='example.jpg']").first.wait_for()
    tab.get_by_label("Question").fill("What is it?")
    tab.get_by_role("button", name="Ask").click()
    tab.locator(".bot").first.wait_for()


def test_stop_ends_an_answer(talkative, visit):
    session, address, _ = talkative
    tab = visit(address)
    ask_and_wait_for_text(tab)
    assert not idle_after(session, 0.01)
    tab.get_by_role("button", name="Stop").click()
    assert idle_after(session, 2)


def test_a_closed_page_ends_its_answer(talkative, visit):
    session, address, _ = talkative
    tab = visit(address)
    ask_and_wait_for_text(tab)
    tab.close()
    assert idle_after(session, 5)

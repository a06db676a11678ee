"""The page of single answers: what it holds, that a browser filters it, that text of the files is never markup."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dyvte.report.samples import keyed, main

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NASTY = """</script><script>document.title="owned"</script><img src=x onerror="document.title='owned'"> & <b>b</b>"""
REPORT = {
    "tokens_per_layer": [9] * 4,
    "tflops": 2.0,
    "decoder_tflops": 1.0,
    "prompt_tokens": 9,
    "visual_tokens": 4,
}


def run_folder(folder: Path, files, answers, scores=None) -> Path:
    """An evaluation's folder: answers are (question id, text, exit layer)."""
    rows = [
        {"question_id": name, "text": text, "metadata": REPORT | {"exit_layer": exit_layer}}
        for name, text, exit_layer in answers
    ]
    files.lines(folder / "merge.jsonl", rows)
    if scores is not None:
        pairs = zip(answers, scores, strict=True)
        files.json(folder / "scores.json", [{"question_id": row[0], "score": s} for row, s in pairs])
    return folder


@pytest.fixture
def evaluated(tmp_path, files):
    """Thirty questions about two images. With exit four answers differ: one is lost, one gained, two stay wrong."""
    for name, color in (("a.png", "orange"), ("b.png", "navy")):
        Image.new("RGB", (900, 300), color).save(tmp_path / name)
    questions = [
        {"question_id": n, "text": f"Question {n}?", "image": "ab"[n % 2] + ".png"} for n in range(30)
    ]
    questions[3]["text"] = NASTY
    files.lines(tmp_path / "questions.jsonl", questions)
    changed = {3: NASTY, 7: "lost", 8: "gained", 9: "other"}
    right = {7: (1, 0), 8: (0, 1), 9: (0, 0), 3: (0, 0.25)}
    exits = [None if n % 5 == 0 else n % 3 for n in range(30)]
    plain = [(n, "yes", None) for n in range(30)]
    early = [(n, changed.get(n, "yes"), exits[n]) for n in range(30)]
    both = [right.get(n, (1, 1)) for n in range(30)]
    run_folder(tmp_path / "none", files, plain, [pair[0] for pair in both])
    run_folder(tmp_path / "dyvte", files, early, [pair[1] for pair in both])
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    asked = ["--question-file", str(folder / "questions.jsonl"), "--image-folder", str(folder)]
    return [str(folder / "none"), str(folder / "dyvte"), *asked, "--out", str(folder / "page.html"), *more]


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(found[1])


def test_the_page_holds_each_question_with_both_answers(evaluated, capsys):
    main(arguments(evaluated))
    assert capsys.readouterr().out == f"samples: {evaluated / 'page.html'}\n"
    data = data_of(evaluated / "page.html")
    assert len(data["samples"]) == 30 and len(data["images"]) == 2, "an image is there once"
    assert data["samples"][8] == {
        "id": 8,
        "question": "Question 8?",
        "images": [0],
        "answers": [
            {"text": "yes", "exit": None, "measured": True, "score": 0},
            {"text": "gained", "exit": 2, "measured": True, "score": 1},
        ],
    }
    text = (evaluated / "page.html").read_text()
    assert text.count("<script") == 2 and "<b>b</b>" not in text and "http" not in text.partition("<body>")[2]


def test_images_are_small(evaluated):
    import base64
    import io

    main(arguments(evaluated, "--side", "60"))
    for encoded in data_of(evaluated / "page.html")["images"]:
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (60, 20)


def test_large_sets_are_several_files(evaluated):
    main(arguments(evaluated, "--per-file", "12"))
    pages = [evaluated / name for name in ("page.html", "page-2.html", "page-3.html")]
    assert [[sample["id"] for sample in data_of(page)["samples"]] for page in pages] == [
        list(range(start, start + 10)) for start in (0, 10, 20)
    ]
    text = pages[1].read_text()
    assert re.findall(r'href="(page.*?)"', text) == ["page.html", "page-3.html"]
    assert "Questions 11 to 20 of 30" in text


def test_a_benchmark_knows_its_questions(tmp_path, files, capsys):
    data = tmp_path / "pope"
    rows = [{"question_id": n, "text": "?", "image": "x.jpg"} for n in (1, 2)]
    files.lines(data / "llava_pope_test.jsonl", rows)
    (data / "val2014").mkdir()
    Image.new("RGB", (8, 8)).save(data / "val2014/x.jpg")
    for name in ("none", "dyvte"):
        run_folder(tmp_path / name, files, [(2, name, None)])
    out = tmp_path / "page.html"
    places = [str(tmp_path / "none/merge.jsonl"), str(tmp_path / "dyvte")]
    main([*places, "--benchmark", "pope", "--data-dir", str(data), "--out", str(out)])
    assert "1 of 2 questions lack an answer in one of the files" in capsys.readouterr().out
    (sample,) = data_of(out)["samples"]
    assert sample["id"] == 2 and [answer["score"] for answer in sample["answers"]] == [None, None]
    assert "<h1>POPE: " in out.read_text()


def test_answers_without_measurements_are_shown(evaluated, files):
    """LLaVA's own commands leave ``metadata`` empty."""
    files.lines(evaluated / "none/merge.jsonl", [{"question_id": 4, "text": "no", "metadata": {}}])
    main(arguments(evaluated))
    (sample,) = data_of(evaluated / "page.html")["samples"]
    assert sample["answers"][0] == {"text": "no", "exit": None, "measured": False, "score": 1}


def test_questions_of_one_name_keep_their_own_answers():
    assert keyed(["a", "b", "a"]) == [("a", 0), ("b", 0), ("a", 1)]


def test_what_is_wrong_is_told_in_one_line(evaluated, files):
    for change, message in (
        (["--per-file", "0"], "--per-file and --side must be positive"),
        (["--benchmark", "pope"], "--benchmark needs --data-dir"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments(evaluated, *change))
    (evaluated / "a.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="question 0 .*a.png"):
        main(arguments(evaluated))
    files.json(evaluated / "none/scores.json", {"score": 1})
    with pytest.raises(SystemExit, match="scores.json is an object, not a list.*--scores writes it"):
        main(arguments(evaluated))
    run_folder(evaluated / "none", files, [(99, "yes", None)], [1])
    with pytest.raises(SystemExit, match="no question has an answer in both files"):
        main(arguments(evaluated))
    assert not (evaluated / "page.html").exists()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium or google-chrome on PATH")
def test_a_browser_filters_it_and_runs_nothing_of_the_files(evaluated):
    sync_api = pytest.importorskip("playwright.sync_api")
    main(arguments(evaluated))
    told: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 500, "height": 900})
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto((evaluated / "page.html").as_uri())

        def shown() -> list[str]:
            return [
                text.removeprefix("question ") for text in page.locator("article .source").all_inner_texts()
            ]

        assert shown() == [str(n) for n in range(25)] and page.inner_text("#place") == "1 to 25 of 30"
        page.click("#after")
        assert shown() == ["25", "26", "27", "28", "29"]
        for name, wanted in (
            ("changed", ["3", "7", "8", "9"]),
            ("lost", ["7"]),
            ("gained", ["3", "8"]),
            ("wrong", ["3", "7", "9"]),
        ):
            page.click(f"button[value={name}]")
            assert shown() == wanted
            assert page.inner_text(f"button[value={name}] .count") == str(len(wanted))
        page.click("button[value=changed]")
        page.select_option("#exit", "after layer 1")
        assert shown() == ["7"] and "wrong" in page.inner_text("article tbody tr:last-child")
        assert page.inner_text("article tbody tr:last-child .exit") == "after layer 1"
        page.reload()
        assert shown() == ["7"], "the address keeps the filter"
        page.select_option("#exit", "")
        page.fill("#words", "GAINED")
        assert shown() == ["8"]
        page.fill("#words", "owned")
        assert shown() == ["3"]
        assert NASTY in page.inner_text("article .question") and NASTY in page.inner_text("article .differs")
        assert page.locator("article b, article script").count() == 0
        assert page.title() == "questions: samples"
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert widths == [224]
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        # the policy stops what would get through all the same
        page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=document.title=1>')"
        )
        page.wait_for_timeout(200)
        assert (
            page.title() == "questions: samples" and len(told) == 1 and "Content Security Policy" in told[0]
        )
        browser.close()

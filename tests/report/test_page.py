"""The HTML report: what it holds, that it needs no other file, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dyvte.decoding.report import RunInfo
from dyvte.report import paper_table, rivals_table, state_table
from dyvte.report.page import FIGURES, main, markdown, page_of, why_missing
from dyvte.report.record import AnsweredBy
from dyvte.study.examples import encode_image

LLAVA = "liuhaotian/llava-v1.5-7b"
NASTY = '<script>alert("x")</script> & <b>bold</b>'
RUN = RunInfo(
    dtype="bfloat16",
    attention="sdpa",
    device="H100",
    commit="a" * 40,
    dirty=True,
    gates_sha256="9a7e5",
    versions={"python": "3.12"},
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags, identifiers and addresses of a page, and the text that a reader sees in each section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.sections: dict[str, str] = {"": ""}
        self._at = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = {key: value or "" for key, value in attrs}
        self.addresses += [named[key] for key in ("src", "href", "srcset", "data", "action") if key in named]
        if tag == "section":
            self._at = named["id"]
            self.sections[self._at] = ""

    def handle_data(self, data):
        self.sections[self._at] += f"{data} "

    def words(self, section: str) -> str:
        return " ".join(self.sections[section].split())


@pytest.fixture
def output(make_record, tmp_path):
    """A folder as all.sh leaves it, with something of every kind, of LLaVA-1.5 7B."""
    root, made = tmp_path / "out", []

    def add(name, folder, **changes):
        path = root / folder / name
        record = make_record(model=LLAVA, data_sha256={"questions.json": f"5ha{name}"}, **changes)
        record.write(path / "record.json")
        made.append((path / "record.json", record))

    for number, name in enumerate(("gqa", "vqav2", "textvqa", "sqa", "seed")):
        plain = {
            "benchmark": name,
            "score": 60.0 + number,
            "tflops": 8.0,
            "batch_check": {"checked": 4, "differ": 0},
        }
        exits = plain | {"method": "dyvte", "score": 57.0 + number, "tflops": 6.0, "settings": {"gates": "G"}}
        gates = {"gates": f"{root}/gates/m/states/cross", "threshold": "0.5"}
        add("none", f"results/m/{name}", **plain)
        add("dyvte", f"results/m/{name}", **exits, answered=(AnsweredBy(RUN, 10),))
        add("cross", f"gates/m/results/{name}", **(exits | {"settings": gates}))
    tables = root / "tables"
    main_records = [pair for pair in made if "results/m" in str(pair[0]) and "gates" not in str(pair[0])]
    paper_table.table_of("table1", main_records).write(tables)
    paper_table.table_of("table2", main_records).write(tables)
    state_table.table_of("table6", made[0::3] + made[2::3]).write(tables)
    rivals_table.table_of([pair for pair in main_records if pair[1].benchmark in ("sqa", "seed")]).write(
        tables
    )
    picture = Image.new("RGB", (40, 20), "orange")
    for path in ("tables/table4.png", "tables/dynamic.png", "figures/m/figure3.png", "figures/m/figure6.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / path)
    (tables / "dynamic.md").write_text(
        f"## Dynamic\n\n- Gates gain **1.2** points. {NASTY}\n\n| a | b |\n| - | -: |\n| x | 3 |\n\n"
        "![far](https://example.com/x.png) [link](https://example.com)\n"
    )
    (tables / "dynamic.json").write_text('{"seed": 11}')
    study = {"model": LLAVA, "benchmark": "gqa", "created": "2025-01-02", "commit": None, "dirty": None}
    study |= {
        "versions": {"python": "3.11"},
        "hardware": {"cpu": "one", "cores": 2, "gpus": []},
        "dtype": "float32",
    }
    numbers = root / "study/m/gqa/none"
    numbers.mkdir(parents=True)
    (numbers / "attention.json").write_text(json.dumps({"study": "attention", **study}))
    (numbers / "attention.npz").touch()
    answer = {
        "text": "red",
        "exit_layer": None,
        "tokens": 2,
        "seconds": 0.5,
        "tokens_per_second": 4.0,
        "tflops": 1.0,
    }
    answers = {"without": answer, "with": answer | {"text": NASTY, "exit_layer": 5, "tokens_per_second": 6.0}}
    example = {"question_id": 3, "question": NASTY, "images": [encode_image(picture)], "answers": answers}
    content = {
        "study": "examples",
        **study,
        "method": "dyvte",
        "num_layers": 32,
        "rounds": 5,
        "examples": [example],
    }
    (root / "study/m/gqa/examples").mkdir()
    (root / "study/m/gqa/examples/examples.json").write_text(json.dumps(content))
    fit = root / "gates/m/states/cross"
    fit.mkdir(parents=True)
    (fit / "fit.json").write_text('{"flags": ["--seed", "7", "--seed", "42"]}')
    (root / "gates/m/store").mkdir()
    (root / "gates/m/store/manifest.json").write_text(
        json.dumps({"model": "d1ge57" * 11, "dtype": "float32"})
    )
    marks = root / "steps"
    marks.mkdir()
    (marks / "table1.done").write_text("key\nseconds 75\n")
    (marks / "table3.failed").write_text(f"ValueError: {NASTY}\n")
    (marks / "table1.log").write_text("hm\nmmvet: left out for M, its data are not ready (see above)\n")
    (marks / "inputs").write_text("MODEL=M\nQUESTIONS=12\nbenchmark gqa\n")
    return root


def test_everything_has_its_place(output):
    page = Page(page_of(output))
    parts = [
        "run",
        "table1",
        "table2",
        "table4",
        "table6",
        "dynamic",
        "figure3",
        "figure6",
        "examples",
        "missing",
    ]
    assert [name for name in page.sections if name] == parts
    assert {address for address in page.addresses if address.startswith("#")} == {
        f"#{part}" for part in parts
    }
    assert page.tags.count("img") == 5
    run = page.words("run")
    for fact in (
        *("Decoder layers 4", "SHA-256 d1ge57", "Gates G, threshold 0.5", "15 evaluations and 2 studies"),
        *("2025-01-01T00:00:00+00:00 to 2025-01-02", "unknown (2 results)", f"{'0' * 40} (10 results)"),
        *(f"{'a' * 40} with uncommitted changes (5 results)",),
        *("python 3.11 (12 results)", "python 3.12 (5 results)", "one, 2 cores, no GPU (12 results)"),
        *("H100 (5 results)", "SHA-256 9a7e5", "gate fitting 42"),
        *("bootstrap 11", "60 questions were asked alone as well as in a batch; 0", "QUESTIONS=12", "table1 1:15"),
        *("GQA 10 questions.json 5hanone", "table3 failed", "Precision bfloat16 float32", "Attention kernel sdpa"),
    ):  # fmt: skip
        assert fact in run, fact
    assert "benchmark gqa" not in run
    assert "fitting 7" not in run, "the last of a flag's values counts"
    assert run.index("python 3.11") < run.index("python 3.12"), "the most frequent first"
    assert "DyVTE keeps 95.1% of the baseline's average score" in page.words("")  # (57 + 1.5) / (60 + 1.5)
    assert "with 25.0% fewer FLOPs" in page.words("")
    assert "study/*/gqa/none/attention.npz" in page.words("figure3")
    assert "results/*/gqa/dyvte/record.json" in page.words("figure6")
    dynamic = page.words("dynamic")
    assert "Gates gain 1.2 points." in dynamic and "From tables/dynamic.md, tables/dynamic.png" in dynamic
    assert "0 of 1 answers are the same" in page.words("examples") and "after layer 5" in page.words(
        "examples"
    )


def test_tables_hold_the_numbers_of_their_files(output):
    page = Page(page_of(output))
    # ours, the paper's, the difference (facts of the paper: GQA 62.0 without, 60.0 with exit)
    text = page.words("table2")
    assert "Baseline 60.0 paper 62.0, -2.0 8 paper" in text and "DyVTE 57.0 paper 60.0, -3.0 6 paper" in text
    assert text.index("Baseline 60.0") < text.index("DyVTE 57.0") and text.count("Average") > 1
    assert "results/m/gqa/dyvte/record.json" in text and str(output) not in text, (
        "sources, relative to the folder"
    )
    four = page.words("table4")
    assert "KV MiB Seconds" in four and "Seconds are of separate runs" in four, "notes of the Markdown file"
    assert "In brackets" not in four + text and "Below a number: the paper's" in text
    assert "no exit 60.0 -" in page.words("table6") and "cross 57.0 paper 38.8, +18.2" in page.words("table6")


def test_sources_are_relative_to_the_folder(output, monkeypatch):
    """However the commands that made the tables named the folder."""
    page = page_of(output)
    monkeypatch.chdir(output.parent)
    table_command = ["table2", f"{output.name}/results", "--out", f"{output.name}/tables"]
    paper_table.main(table_command)
    assert f"{output.name}/results/m/gqa" in (output / "tables/table2.csv").read_text()
    assert "results/m/gqa/none/record.json" in page and page_of(Path(output.name)) == page


def test_what_is_missing_is_said_with_its_reason(output):
    missing = Page(page_of(output)).words("missing")
    assert f"Table 3: gates that look at one or two states table3 failed: ValueError: {NASTY}" in missing
    assert "table5 has not run" in missing and "Figure 5 figure5 has not run" in missing
    assert "mmvet: left out for M" in missing and "Figure 3" in missing  # of figures 9 and 10
    (output / "steps/figure5.done").touch()
    assert "ended well but its files are not here" in why_missing("figure5", output)


def test_an_empty_folder_gives_a_page(tmp_path):
    page = Page(page_of(tmp_path))
    assert [name for name in page.sections if name] == ["run", "missing"] and "img" not in page.tags
    assert "No result is in the folder" in page.words("run")
    assert page.words("missing").count("has not run") == 6 + 3 + len(FIGURES) + 1


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_markup_that_should_be_text(output):
    text = page_of(output)
    page = Page(text)
    assert page.addresses and all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "script" not in page.tags and "b" not in page.tags and "link" in page.tags
    assert not re.search(r"url\(|@import", text)
    assert text.count("&lt;script&gt;") >= 4, "question, answer, section and reason show it as text"


def test_markdown():
    html = markdown("# A\n\n| a | b |\n| - | -: |\n| `x` | 3 |\n\n[x](http://y) ![z](http://y/z.png)")
    assert "<h3>A</h3>" in html and '<div class="wide"><table>' in html and "<code>x</code>" in html
    assert "<img" not in html and "<a" not in html and "http://y" in html


def test_the_same_results_give_the_same_file(output, tmp_path, capsys):
    first, moved = tmp_path / "first.html", tmp_path / "moved"
    main([str(output), "--out", str(first)])
    assert "report:" in capsys.readouterr().out
    written = first.stat().st_mtime_ns
    main([str(output), "--out", str(first)])
    assert first.stat().st_mtime_ns == written, "what would not change is not written"
    shutil.copytree(output, moved)
    assert page_of(moved) == first.read_text()
    path = moved / "tables/table2.json"
    path.write_text(path.read_text().replace("57.0", "57.5"))
    assert page_of(moved) != first.read_text()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tables/table2.json", "{}", "not a table of this version"),
        ("tables/table4.json", "[", "not valid JSON"),
        ("results/m/gqa/none/record.json", "{}", "not a result record"),
        ("study/m/gqa/examples/examples.json", "{}", "not of python -m dyvte.study.examples"),
    ],
)
def test_broken_files_are_named(output, name, content, message):
    (output / name).write_text(content)
    with pytest.raises(SystemExit, match=message):
        main([str(output), "--out", str(output / "report.html")])
    assert not (output / "report.html").exists()


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(SystemExit, match="dyvte.reproduce all makes one"):
        main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "x.html")])


def browse(file: Path, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    return subprocess.run(
        [*command, "--enable-logging=stderr", *flags, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not CHROMIUM, reason="no chromium or google-chrome on PATH")
def test_a_browser_shows_it(output, tmp_path):
    page = tmp_path / "report.html"
    main([str(output), "--out", str(page)])
    shown = browse(
        page, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=400,900", folder=tmp_path / "a"
    )
    assert Image.open(tmp_path / "shot.png").getcolors(10) is None, "more than a blank page"
    assert "CONSOLE" not in shown.stderr, shown.stderr
    # the page allows no script, so that a copy without this rule is asked
    script = """<script>addEventListener("load", () => { document.body.dataset.found = JSON.stringify({
    widths: [...document.images].map(image => image.naturalWidth),
    wide: document.documentElement.scrollWidth - innerWidth})})</script>"""
    text = re.sub(r"<meta http-equiv.*?>", "", page.read_text())
    (tmp_path / "copy.html").write_text(text.replace("</body>", script + "</body>"))
    flags = ("--dump-dom", "--window-size=500,900")
    dumped = browse(tmp_path / "copy.html", *flags, folder=tmp_path / "b").stdout
    found = json.loads(re.search(r'data-found="(.*?)"', dumped)[1].replace("&quot;", '"'))  # type: ignore[index]
    assert len(found["widths"]) == 5 and min(found["widths"]) > 0
    assert found["wide"] <= 0, "no scrolling sideways on a phone"

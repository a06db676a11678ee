"""Tables 3, 5 and 6: what stands where, what it is compared with, and where it comes from."""

import csv
from pathlib import Path

import pytest

from dyvte.report import paper
from dyvte.report.state_table import main, rows_in, table_of

LLAVA = "liuhaotian/llava-v1.5-7b"


@pytest.fixture
def records(make_record):
    """LLaVA-1.5 7B without exit and with three kinds of gates, one of them on all four benchmarks."""
    made = []

    def add(name, states, score, layer=10.0, model=LLAVA):
        method = "dyvte" if states else "none"
        settings = {"gates": f"somewhere/{states}", "threshold": "0.5"} if states else {}
        record = make_record(
            model=model, benchmark=name, method=method, settings=settings, score=score, mean_exit_layer=layer
        )
        made.append((Path(f"r/{name}/{states or 'none'}/record.json"), record))

    add("gqa", None, 62.0, 32.0)
    for number, name in enumerate(("gqa", "textvqa", "mmvet", "sqa")):
        add(name, "mean_text+last_text", 50.0 + number, 16.0 + number)
    add("gqa", "cross", 40.0, 1.0)
    add("gqa", "mean_visual+mean_text+last_text", 61.0, 17.0)
    add("gqa", "gates", 1.0)  # gates of another name have no place
    add("pope", "mean_text", 1.0)  # nor has another benchmark
    return made


def test_values_of_the_paper():
    both = "mean_text+last_text"
    assert paper.values_of("table5", both, "GQA") == {
        "score": 60.0,
        "exit_layer": 16.4,
    }
    assert paper.values_of("table6", "image_self+cross+text_self", "Average")["score"] == 44.1
    assert paper.is_llava_7b(LLAVA) and not paper.is_llava_7b("playground/tiny/model")
    assert paper.values_of("table5", "mean_visual+mean_text+last_text", "GQA") == {}
    assert [len(rows_in(table)) for table in ("table3", "table5", "table6")] == [10, 15, 7]
    for table, printed in (("table3", "table5"), ("table5", "table5"), ("table6", "table6")):
        placed = [row for row in rows_in(table) if paper.values_of(printed, row, "SQA-I")]
        assert len(placed) == {"table3": 10, "table5": 13, "table6": 7}[table]
        for row in placed:  # averages as printed are means of the four, but for rounding and three misprints
            score = paper.values_of(printed, row, "Average")["score"]
            four = [paper.values_of(printed, row, c)["score"] for c in ("GQA", "TextVQA", "MM-Vet", "SQA-I")]
            assert score == pytest.approx(sum(four) / 4, abs=0.7)


def test_rows_differences_and_average(records):
    rows = table_of("table3", records).texts()
    assert rows[0] == [
        "Model", "States", "GQA", "Exit layer", "TextVQA", "Exit layer", "MM-Vet", "Exit layer", "SQA-I",
        "Exit layer", "Average", "Exit layer",
    ]  # fmt: skip
    assert rows[1:] == [
        ["llava-v1.5-7b", "no exit", "62.0", *["-"] * 9],
        ["llava-v1.5-7b", "mean_text, last_text", "50.0 (60.0, -10.0)", "16.0 (16.4)", "51.0 (56.6, -5.6)",
         "17.0 (19.7)", "52.0 (31.9, +20.1)", "18.0 (21.1)", "53.0 (69.6, -16.6)", "19.0 (13.4)",
         "51.5 (54.5, -3.0)", "17.5 (17.6)"],
    ]  # fmt: skip
    assert [row[1] for row in table_of("table5", records).texts()[1:]] == [
        "no exit", "mean_text, last_text", "mean_visual, mean_text, last_text",
    ]  # fmt: skip
    assert table_of("table6", records).texts()[2][1:4] == [
        "cross",
        "40.0 (38.8, +1.2)",
        "1.0 (1.3)",
    ]


def test_files_name_sources_and_rows_that_have_no_place(records, tmp_path):
    table = table_of("table5", records)
    table.write(tmp_path)
    markdown = (tmp_path / "table5.md").read_text()
    assert "row 11" in markdown and "GQA 60.1 at 16.4" in markdown and "row 12" in markdown
    assert "row 11" not in table_of("table6", records).markdown()
    assert (tmp_path / "table5.tex").read_text().count(r"\\") == 4
    lines = list(csv.DictReader((tmp_path / "table5.csv").open()))
    mine = next(
        line for line in lines if line["states"] == "mean_text+last_text" and line["benchmark"] == "SQA-I"
    )
    assert (mine["score"], mine["paper_score"], mine["paper_exit_layer"]) == ("53.0", "69.6", "13.4")
    assert mine["record"] == "r/sqa/mean_text+last_text/record.json"


def test_what_is_refused(records, make_record, tmp_path):
    with pytest.raises(ValueError, match="None of the records is of gates in table3"):
        table_of("table3", records[:1])
    with pytest.raises(ValueError, match="same model, states and benchmark"):
        table_of("table5", [*records, records[1]])
    make_record(model="m", benchmark="gqa").write(tmp_path / "record.json")
    with pytest.raises(SystemExit, match="needs gqa, textvqa, mmvet, sqa"):
        main(["table6", str(tmp_path), "--out", str(tmp_path / "out")])

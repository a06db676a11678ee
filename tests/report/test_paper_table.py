"""Tables 1 and 2: what stands where, what it is compared with, and where it comes from."""

import csv
import json
from pathlib import Path

import pytest

from dyvte.report import paper
from dyvte.report.paper_table import main, table_of
from dyvte.report.tables import Table

LLAVA = "liuhaotian/llava-v1.5-7b"
TABLE2 = {"gqa": 61.0, "vqav2": 78.0, "textvqa": 58.0, "sqa": 70.0}


@pytest.fixture
def records(make_record):
    """LLaVA-1.5 7B on all of Table 2, and DyVTE on two of its benchmarks."""
    made = [
        (
            Path(f"r/{name}/none/record.json"),
            make_record(model=LLAVA, benchmark=name, score=score, tflops=9.0),
        )
        for name, score in TABLE2.items()
    ]
    for name in ("gqa", "pope"):
        record = make_record(model=LLAVA, benchmark=name, method="dyvte", score=59.0, tflops=5.0)
        made.append((Path(f"r/{name}/dyvte/record.json"), record))
    return made


def test_values_of_the_paper():
    assert (
        paper.row_of(LLAVA, "none") == "LLaVA-1.5 7B"
        and paper.row_of("x/LLaVA-v1.5-13B", "dyvte") == "LLaVA-DyVTE 13B"
    )
    assert paper.row_of(LLAVA, "fixed") is None and paper.row_of("playground/tiny/model", "none") is None
    assert paper.values_of("table1", "LLaVA-DyVTE 7B", "POPE") == {"score": 81.6, "tflops": 4.1}
    assert paper.values_of("table2", "Eagle-X5 7B", "Average") == {"score": 72.3, "tflops": 28.6}
    assert paper.values_of("table2", None, "GQA") == {}
    rows = {row for pair in paper._ROWS.values() for row in pair}
    for table, columns in paper.COLUMNS.items():
        assert all(paper.values_of(table, row, column) for row in rows for column in columns.values())


def test_rows_differences_and_average(records):
    rows = table_of("table2", records).texts()
    assert rows[0][:4] == ["Model", "Method", "GQA", "TFLOPs"] and rows[0][-2] == "Average"
    assert rows[1] == [
        "llava-v1.5-7b", "Baseline", "61.0 (62.0, -1.0)", "9 (8.8, +0.2)", "78.0 (78.5, -0.5)", "9 (8.8, +0.2)",
        "58.0 (58.2, -0.2)", "9 (9.5, -0.5)", "70.0 (69.4, +0.6)", "9 (9.8, -0.8)",
        "66.8 (67.0, -0.2)", "9 (9.2, -0.2)",
    ]  # fmt: skip
    assert rows[2][1:5] == ["DyVTE", "59.0 (60.0, -1.0)", "5 (5.3, -0.3)", "-"] and rows[2][-1] == "-"
    assert len(rows) == 3


def test_a_model_that_the_paper_has_not(make_record):
    record = make_record(model="tiny", benchmark="pope", score=68.54, tflops=6e-4)
    table = table_of("table1", [(Path("a"), record)])
    rows = table.texts()
    assert rows[0][3] == "GFLOPs" and rows[1][8:10] == ["68.5", "0.6"]
    assert "In brackets" not in table.markdown()


def test_files_and_sources(records, tmp_path):
    table = table_of("table2", records[::-1])
    table.write(tmp_path)
    markdown = (tmp_path / "table2.md").read_text()
    assert "table2.csv" in markdown and "In brackets: the paper's value, and ours minus" in markdown
    assert Table.read(tmp_path / "table2.json", tmp_path).texts() == table.texts()
    assert (tmp_path / "table2.tex").read_text().startswith(r"\begin{tabular}")
    rows = list(csv.DictReader((tmp_path / "table2.csv").open()))
    assert [row["benchmark"] for row in rows] == ["GQA", "VQAv2", "TextVQA", "SQA-I", "Average", "GQA"]
    assert rows[0]["record"] == "r/gqa/none/record.json" and float(rows[0]["score_difference"]) == -1.0
    assert float(rows[4]["score"]) == 66.75 and rows[4]["record"].count("record.json") == 4


def test_trouble(records, tmp_path):
    with pytest.raises(ValueError, match="same model, method and benchmark"):
        table_of("table2", [*records, records[0]])
    with pytest.raises(ValueError, match="belongs into table1"):
        table_of("table1", records[:4])
    with pytest.raises(SystemExit, match="holds no record"):
        main(["table1", str(tmp_path), "--out", str(tmp_path)])


def test_models_at_hand(tmp_path):
    for name in ("llava-v1.5-7b", "LLaVA-v1.5-13b", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({}))
    (tmp_path / "vila-7b").mkdir()
    assert [place.name for place in paper.known_models([tmp_path])] == ["LLaVA-v1.5-13b", "llava-v1.5-7b"]
    assert paper.known_models([tmp_path / "nowhere"]) == []

"""The page of examples (Fig. 7 of the paper): one HTML file that needs no other."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, StrictUndefined

from dyvte.report.table import title_of
from dyvte.study.titles import method_title, model_title

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Examples: {{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
section { display: flex; gap: 1.2rem; flex-wrap: wrap; border-top: 1px solid #ddd; padding: 1.2rem 0; }
.images img { display: block; width: 14rem; max-width: 100%; margin-bottom: .4rem; image-rendering: auto; }
.text { flex: 1; min-width: 18rem; }
.question { white-space: pre-wrap; font-weight: 600; }
table { border-collapse: collapse; margin-top: .6rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #eee; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.differs { color: #d9622b; }
footer { color: #666; font-size: 13px; border-top: 1px solid #ddd; padding-top: .8rem; }
</style>
</head>
<body>
<h1>{{ title }}, without and with exit</h1>
<p>{{ summary }}</p>
{% for example in examples %}
<section>
<div class="images">
{%- for image in example.images %}
<img alt="image {{ loop.index }} of question {{ example.question_id }}" src="data:image/png;base64,{{ image }}">
{%- endfor %}
</div>
<div class="text">
<div class="question">{{ example.question }}</div>
<table>
<tr><th></th><th>answer</th><th>image leaves</th><th>tokens</th><th>tokens per second</th></tr>
{%- for name, answer in example.answers.items() %}
<tr>
<td>{{ labels[name] }}</td>
<td {%- if answer.text != example.answers["without"].text %} class="differs"{% endif %}>{{ answer.text }}</td>
<td>{% if answer.exit_layer is none %}never{% else %}after layer {{ answer.exit_layer }}{% endif %}</td>
<td class="number">{{ answer.tokens }}</td>
<td class="number">{{ "%.1f" | format(answer.tokens_per_second) }}</td>
</tr>
{%- endfor %}
</table>
</div>
</section>
{% endfor %}
<footer>
{{ model }}, {{ num_layers }} layers, {{ dtype }}, batch size 1, median of {{ rounds }} rounds. {{ machine }};
torch {{ versions.torch }}, transformers {{ versions.transformers }}. Commit {{ commit }}, {{ created }}.
</footer>
</body>
</html>
"""


def read_examples(path: Path) -> dict[str, Any]:
    """What ``python -m dyvte.study.examples`` wrote; ``path`` is the file or its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this study.
    """
    path = path / "examples.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; python -m dyvte.study.examples writes it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("study") != "examples":
        raise ValueError(f"{path} is not of python -m dyvte.study.examples.")
    return content


def page_of(study: dict[str, Any]) -> str:
    """The page as HTML."""
    hardware = study["hardware"]
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(PAGE).render(
        study,
        title=f"{title_of(study['benchmark'])}, {model_title(study['model'])}",
        summary=summary_of(study["examples"]),
        labels={"without": "without exit", "with": method_title(study)},
        machine=", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['cores']} cores",
    )


def summary_of(examples: list[dict[str, Any]]) -> str:
    """The examples in one sentence: how many answers are the same, and the speed of both ways."""
    same = sum(e["answers"]["with"]["text"] == e["answers"]["without"]["text"] for e in examples)
    speeds = {
        way: mean(e["answers"][way]["tokens_per_second"] for e in examples) for way in ("without", "with")
    }
    change = 100 * (speeds["with"] / speeds["without"] - 1)
    return (
        f"{same} of {len(examples)} answers are the same. Mean tokens per second: {speeds['without']:.1f} without "
        f"exit, {speeds['with']:.1f} with it ({change:+.1f}%)."
    )


def write_page(source: Path, out: Path) -> Path:
    """Write the page of one study; returns the file."""
    out = out if out.suffix == ".html" else out.with_name(out.name + ".html")
    page = page_of(read_examples(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out

"""The demo's page: an image and the controls, both answers as they come, their costs, and a bar for each layer.

:mod:`llava.serve.demo` serves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dyvte.cli import extra
from dyvte.methods import METHODS, OWN_FLAGS, described
from dyvte.report.plotting import BLUE, GREY, ORANGE
from llava.serve.demo_charts import EXIT, KEEP, NOT_ASKED, TEXT, VISUAL, Bar, costs, gate_bars, token_bars
from llava.serve.demo_server import KEPT_SECONDS, Page, plain_errors, read_upload
from llava.serve.demo_session import MAX_CHARACTERS, Controls, Session, Turn

with extra("demo"):
    import gradio as gr
    import pandas as pd

QUESTIONS = (
    "What digit is red?",
    "How many digits are there?",
    "What color is the digit in the center?",
    "Is there a blue 7 in the image?",
)
"""About Tiny-LLaVA's example image."""
TOKENS_TITLE = "Tokens that each layer computes"
STYLE = """
#question { align-items: end; }
#costs table { width: 100%; border-color: var(--border-color-primary); }
#costs :is(th, td) { text-align: right; white-space: nowrap; border-color: var(--border-color-primary); }
#costs :is(th, td):first-child { text-align: left; white-space: normal; word-break: normal; }
"""
LOOKS: Any = {"theme": gr.Theme(primary_hue="blue", font=["system-ui", "sans-serif"]), "css": STYLE}
CHAT: Any = {
    "height": 280,
    "buttons": [],
    "placeholder": "Choose an image and ask.",
    "render_markdown": False,
    "latex_delimiters": [],
}
PRIVATE: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that only change the page."""


def page_of(session: Session, model: str, controls: Controls, example: Path | None) -> Page:
    """The page.

    Args:
        model: what to call the model.
        controls: as they stand at first.
        example: an image to offer, with :data:`QUESTIONS`.
    """
    # the latter may be several joined by +
    methods = list(dict.fromkeys([*session.methods, controls.method]))
    layers = [str(layer) for layer in range(session.num_layers)]
    fitting = _fitting(controls.method)
    bars: Any = {
        "x": "layer",
        "y": "value",
        "color": "part",
        "x_title": "layer",
        "color_title": " ",
        "height": 260,
        "min_width": 320,
        "visible": False,
        "sort": layers,
    }

    with Page("DyVTE") as page:
        gr.Markdown(
            f"# When may the image leave?\n**{model}** ({len(layers)} layers) answers each question twice: with all "
            "visual tokens in every layer, and with a method that lets them leave on the way."
        )
        turns = gr.State([], time_to_live=KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(
                    label="Image",
                    type="filepath",  # read by our own loader
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=230,
                    buttons=[],
                )
                if example is not None:
                    gr.Examples([[str(example)]], image, label="Example image", cache_examples=False)
                titles = [(_title(name), name) for name in methods]
                method = gr.Dropdown(titles, value=controls.method, label="Method")
                threshold = gr.Slider(0, 1, controls.threshold, step=0.01, label="Threshold", **fitting[0])
                layer = gr.Slider(
                    0, len(layers) - 1, controls.exit_layer, step=1, label="Exit layer", **fitting[1]
                )
                settings = gr.Textbox(controls.settings, label="Settings", **fitting[2])
            with gr.Column(scale=3):
                with gr.Row():
                    plain = gr.Chatbot(label="Without exit", **CHAT)
                    exiting = gr.Chatbot(**CHAT, **fitting[3])
                with gr.Row(elem_id="question"):
                    text = gr.Textbox(
                        label="Question",
                        placeholder="Ask about the image",
                        max_length=MAX_CHARACTERS,
                        scale=6,
                        min_width=280,
                    )
                    button = gr.Button("Ask", variant="primary", min_width=80)
                    stop = gr.Button("Stop", min_width=80)
                if example is not None:
                    questions = [[question] for question in QUESTIONS]
                    gr.Examples(questions, text, label="Example questions", cache_examples=False)
                summary = gr.Markdown(elem_id="costs")
        with gr.Row():
            gates = gr.BarPlot(
                **bars,
                y_title="exit probability",
                y_lim=[0, 1],
                color_map={KEEP: BLUE, EXIT: ORANGE, NOT_ASKED: GREY},
                colors_in_legend=[KEEP, EXIT],
                elem_id="gates",
            )
            tokens = gr.BarPlot(
                **bars,
                y_title="tokens",
                color_map={VISUAL: BLUE, TEXT: GREY},
                elem_id="tokens",
            )
        results = [plain, exiting, turns, summary, gates, tokens]

        def ask(image, text, turns, method, threshold, layer, settings) -> Iterator[Sequence[Any]]:
            chosen = Controls(method, threshold, int(layer), settings if _has_settings(method) else "")
            with plain_errors():
                for turn in session.ask(read_upload(image), turns, text, chosen):
                    yield "", *_shown([*turns, turn], chosen)

        asking = gr.on(
            [button.click, text.submit],
            ask,
            [image, text, turns, method, threshold, layer, settings],
            [text, *results],
            api_name="ask",
            concurrency_limit=1,
            show_progress_on=[exiting],
        )
        stop.click(None, cancels=[asking])
        hidden = gr.BarPlot(visible=False)
        gr.on(
            [image.change, plain.clear, exiting.clear],
            lambda: ([], [], [], "", hidden, hidden),
            outputs=results,
            **PRIVATE,
        )
        method.change(
            lambda name: [gr.update(**properties) for properties in _fitting(name)],
            method,
            [threshold, layer, settings, exiting],
            **PRIVATE,
        )
    return page


def _shown(turns: list[Turn], chosen: Controls) -> Sequence[Any]:
    """Both conversations; with the last turn's costs and bars, once it is whole."""
    plain: list[dict[str, str]] = []
    exiting: list[dict[str, str]] = []
    for turn in turns:
        for side, answer in ((plain, turn.plain), (exiting, turn.exiting)):
            side.append({"role": "user", "content": turn.question})
            side.append({"role": "assistant", "content": answer.text})
    report = turns[-1].exiting.report
    if report is None:
        return plain, exiting, *[gr.skip()] * 4
    gates_title = f"Exit probability after each layer (threshold {chosen.threshold:g})"
    charts = _chart(gate_bars(report), gates_title), _chart(token_bars(report), TOKENS_TITLE)
    return plain, exiting, turns, costs(turns[-1], _title(chosen.method)), *charts


def _chart(bars: Sequence[Bar], title: str) -> gr.BarPlot:
    """The chart with these bars; hidden where there are none."""
    return gr.BarPlot(pd.DataFrame([asdict(bar) for bar in bars]), title=title, visible=bool(bars))


def _fitting(method: str) -> list[dict[str, Any]]:
    """Properties of threshold, exit layer, settings and the second conversation: only the controls that the method
    has are there, and its name stands over its answers.
    """
    names = method.split("+")
    defaults = "; ".join(described(name) for name in names if name not in OWN_FLAGS)
    return [
        {"visible": "dyvte" in names},
        {"visible": "fixed" in names},
        {"visible": bool(defaults), "info": f"Defaults: {defaults}"},
        {"label": f"With {_title(method)}"},
    ]


def _has_settings(method: str) -> bool:
    return not set(method.split("+")) <= set(OWN_FLAGS)


def _title(method: str) -> str:
    return " + ".join(METHODS[name].title for name in method.split("+"))

"""Attach an exit policy to transformers' LLaVA, generate, and read what the prefill did.

python examples/01_attach.py
"""

from __future__ import annotations

from tiny_llava import tiny_llava, two_prompts

from dyvte import ExitGates, FixedExit, LearnedExit, attach

model, prompts = tiny_llava(), two_prompts()

# A fixed exit: the visual tokens of every sample leave after layer 1.
with attach(model, FixedExit(1)) as handle:
    model.generate(**prompts, max_new_tokens=4, do_sample=False)
    trace = handle.traces[-1]  # one trace per prefill
    print("fixed exit layers:", trace.exit_layers)  # one per sample
    print("tokens per layer and sample:", trace.tokens_per_layer.tolist())

# A learned exit: a gate after each layer decides for each sample. These gates are not trained.
gates = ExitGates(num_layers=4, hidden_size=64, width=32)
with attach(model, LearnedExit(gates, threshold=0.5)) as handle:
    model.generate(**prompts, max_new_tokens=4, do_sample=False)
    for report in handle.traces[-1].report():  # one report per sample: costs, probabilities, versions
        print(
            f"exit layer {report.exit_layer}, exit probabilities {report.exit_probabilities}, "
            f"{report.tflops * 1e6:.2f} MFLOPs, {report.kv_bytes} bytes of keys and values"
        )

# Outside the block the model has its own forward again.
model.generate(**prompts, max_new_tokens=4, do_sample=False)

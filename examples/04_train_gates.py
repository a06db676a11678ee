"""Train exit gates on a tiny random model, in memory.

One forward pass of the frozen model labels every layer: would the answer stay the same without the image from here
on? The gates learn these labels. ``python -m dyvte.gates.store_states`` and ``scripts/v1_5/finetune_visual_gate.sh``
do the same for real models and data.

    python examples/04_train_gates.py
"""

from __future__ import annotations

import tempfile

import torch
from tiny_llava import TOKENS_PER_IMAGE, tiny_llava, two_prompts

from dyvte import ExitGates, LearnedExit, attach
from dyvte.gates.supervision import IGNORE_INDEX, Embedded, gate_loss, supervise

model = tiny_llava().requires_grad_(False)
random = torch.Generator().manual_seed(0)


def make_batch(size: int = 16, prompt: int = 6, answer: int = 2) -> Embedded:
    """Samples of an image, ``prompt`` text tokens and ``answer`` answer tokens, as embeddings (size, S, 64)."""
    ids = torch.randint(3, 199, (size, TOKENS_PER_IMAGE + prompt + answer), generator=random)
    visual = torch.zeros_like(ids, dtype=torch.bool)
    visual[:, :TOKENS_PER_IMAGE] = True
    embeds = model.get_input_embeddings()(ids)
    embeds[visual] = 0.3 * torch.randn(
        int(visual.sum()), 64, generator=random
    )  # a vision tower would give these
    labels = ids.clone()
    labels[:, :-answer] = IGNORE_INDEX  # only the answer has labels
    return Embedded(embeds, labels, visual, torch.ones_like(visual))


gates = ExitGates(num_layers=4, hidden_size=64, width=32)
optimizer = torch.optim.Adam(gates.parameters(), lr=1e-3)
supervisions = [supervise(model, **vars(make_batch())) for _ in range(4)]
labels = torch.cat([supervision.labels for supervision in supervisions], dim=1)
print("share of samples that may exit, by layer:", labels.float().mean(1).tolist())

for epoch in range(20):
    total = 0.0
    for supervision in supervisions:
        loss, _ = gate_loss(gates, supervision)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    if epoch in (0, 19):
        print(f"epoch {epoch}: loss {total / len(supervisions):.3f}")

with tempfile.TemporaryDirectory() as folder:
    gates.save_pretrained(folder)  # gates.safetensors, gates.json and a model card
    trained = ExitGates.from_pretrained(folder)
with attach(model, LearnedExit(trained)) as handle:
    model.generate(**two_prompts(), max_new_tokens=4, do_sample=False)
    print("exit layers:", handle.traces[-1].exit_layers)

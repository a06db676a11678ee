"""``dyvte serve`` as a process of its own: its first line, its end, and its memory under load."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import openai
import pytest
from openai import OpenAI
from PIL import Image

from dyvte import ExitGates
from tests.serve.conftest import data_url, user


def resident_megabytes(process: subprocess.Popen) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's figures of memory")
@pytest.mark.parametrize(
    "count", [40, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_memory_stays_flat_under_load(checkpoint, tmp_path, capsys, count):
    ExitGates(3, 32, width=8).save_pretrained(tmp_path / "gates")
    flags = (
        f"--model-path {checkpoint} --gates {tmp_path}/gates --served-model-name served --device cpu --port 0"
    )
    command = [sys.executable, "-m", "llava.commands", "serve", *flags.split()]
    chance = Random(0)
    images = [
        Image.new("RGB", (chance.randint(20, 600), chance.randint(20, 600)), (9 * n, 9, 9)) for n in range(8)
    ]
    held: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[-1]
            client = OpenAI(base_url=address, api_key="none", max_retries=0, timeout=300)

            def ask(number: int) -> None:
                shown = images[number % 8 : number % 8 + number % 3]
                messages = [user("How many digits? " * (1 + number % 20), *shown)]
                wanted = {"model": "served", "messages": messages, "max_tokens": 1 + number % 12}
                if number % 10 == 3:  # leaves after the first chunk
                    with client.chat.completions.create(
                        **wanted | {"max_tokens": 200}, stream=True
                    ) as chunks:
                        next(iter(chunks))
                elif number % 10 == 5:
                    with pytest.raises(openai.BadRequestError):
                        client.chat.completions.create(**wanted, n=2)
                elif number % 10 == 7:
                    broken = {"type": "image_url", "image_url": {"url": data_url(images[0])[:-200]}}
                    with pytest.raises(openai.BadRequestError):
                        client.chat.completions.create(
                            **wanted | {"messages": [{"role": "user", "content": [broken]}]}
                        )
                elif number % 2:
                    assert list(client.chat.completions.create(**wanted, stream=True))
                else:
                    answer = client.chat.completions.create(**wanted)
                    assert answer.usage.completion_tokens <= wanted["max_tokens"]

            with ThreadPoolExecutor(8) as pool:
                for number, _ in enumerate(pool.map(ask, range(count))):
                    if number % max(1, count // 40) == 0:
                        held.append(resident_megabytes(process))
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    settled = held[len(held) // 4 :]
    with capsys.disabled():
        print(f"\n{count} requests: {settled[0]:.0f} MB after a quarter, {settled[-1]:.0f} MB at the end")
    assert max(settled) - settled[0] < 60, held

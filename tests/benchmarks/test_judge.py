"""The judge against an endpoint on this machine: what it is asked, what is paid for, and what it survives."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from dyvte.benchmarks import judge, mmvet
from tests.robustness.bad_disk import read_only, told

ROOT = Path(__file__).parents[2]
KEY = "sk-very-secret"
INSTRUCTION = "Grade this.\n\nQuestion | Truth | Prediction | Correctness\n"
SAMPLES = 4


class Endpoint:
    """Plays the endpoint. ``answer(request, number)`` gives a reply's text, or (status, headers, body)."""

    def __init__(self):
        self.requests = []
        self.paid = []
        self.headers = []
        self.answer = lambda request, number: "0.5"
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(request)
                endpoint.headers.append((self.path, self.headers.get("Authorization")))
                outcome = endpoint.answer(request, len(endpoint.requests))
                if outcome is ConnectionError:
                    return
                if not isinstance(outcome, tuple):
                    message = {"role": "assistant", "content": outcome}
                    outcome = 200, {}, json.dumps({"model": "served", "choices": [{"message": message}]})
                status, headers, body = outcome
                if status == 200:
                    endpoint.paid.append((request["messages"][0]["content"], request["temperature"]))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()


@pytest.fixture
def endpoint(monkeypatch):
    endpoint = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MMVET_JUDGE_MODEL", raising=False)
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def naps(monkeypatch):
    """Waits are noted, not waited."""
    noted = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=noted.append))
    return noted


@pytest.fixture
def place(tmp_path, files):
    """A data folder, answers, and the command line that grades them."""
    data = tmp_path / "mm-vet"
    answers = {f"v1_{n}": f"truth {n}" for n in range(SAMPLES)}
    samples = {
        key: {"question": f"Q{key}?", "answer": text, "capability": ["rec"]} for key, text in answers.items()
    }
    samples["v1_0"]["answer"] = "x<AND>y<OR>z"
    files.json(data / "mm-vet.json", samples)
    prompt = tmp_path / "prompt.txt"
    prompt.write_bytes(INSTRUCTION.encode())

    def answer(name, texts):
        rows = [{"question_id": int(key[3:]), "text": text} for key, text in texts.items()]
        return files.lines(tmp_path / name / "merge.jsonl", rows)

    def arguments(name="a", rounds=1, *more):
        return [
            *("--data-dir", str(data), "--answers", str(tmp_path / name / "merge.jsonl")),
            *("--prompt-file", str(prompt), "--rounds", str(rounds), *more),
        ]

    def grades(name="a", rounds=1, model="gpt-4-0613"):
        return json.loads((tmp_path / f"{name}/grades/{name}_{model}-grade-{rounds}runs.json").read_text())

    texts = {f"v1_{n}": f"answer {n}" for n in range(SAMPLES)}
    answer("a", texts)
    return SimpleNamespace(
        data=data,
        answer=answer,
        arguments=arguments,
        grades=grades,
        texts=texts,
        path=tmp_path,
        prompt=prompt,
    )


def test_what_is_asked_and_what_is_kept(endpoint, place, capsys):
    scores = {"v1_0": "0.3 |", "v1_1": "1.0", "v1_2": "0", "v1_3": "0.7"}
    endpoint.answer = lambda request, number: scores[f"v1_{number - 1}"]
    judge.main(place.arguments())
    first = endpoint.requests[0]
    assert first == {
        "model": "gpt-4-0613",
        "max_tokens": 3,
        "temperature": 0.0,
        "messages": [
            {"role": "user", "content": INSTRUCTION + "\nQv1_0? | x <AND> y <OR> z | answer 0 | "},
        ],
    }
    assert set(endpoint.headers) == {("/v1/chat/completions", f"Bearer {KEY}")}
    grades = place.grades()
    assert grades["v1_0"] == {"model": ["served"], "content": ["0.3"], "score": [0.3]}
    score = mmvet.score(place.data, place.path / "a/merge.jsonl")
    assert score.value == pytest.approx(50.0) and score.remarks == [] and score.metric.endswith("by served")
    table = place.path / "a/grades/a_gpt-4-0613-cap-score-1runs.csv"
    assert table.read_text() == ",rec,total,std,runs\na,50.0,50.0,0.0,[50.0]\n"
    assert table.with_name("a_gpt-4-0613-cap-int-score-1runs.csv").read_text() == table.read_text()
    out = capsys.readouterr()
    assert "not MM-Vet's own" in out.out
    written = [path.read_bytes() for path in place.path.rglob("*") if path.is_file()]
    for secret in (KEY, endpoint.url, endpoint.url.removeprefix("http://")):
        assert secret not in out.out + out.err and not any(secret.encode() in content for content in written)


def test_bad_replies_are_asked_again_warmer(endpoint, place):
    place.answer("a", {"v1_1": "answer 1"})
    replies = ["I think", "1.5", None, " 0.4", "0.6"]
    endpoint.answer = lambda request, number: replies[number - 1]
    judge.main(place.arguments())
    assert [request["temperature"] for request in endpoint.requests] == [0.0, 0.0, 0.5, 1.0, 1.5]
    texts = [request["messages"][0]["content"] for request in endpoint.requests]
    assert texts[1:] == [texts[0] + "\nPredict the correctness of the answer (digit): "] * 4
    assert place.grades()["v1_1"] == {"model": ["served"], "content": ["0.6"], "score": [0.6]}


def test_never_a_number(endpoint, place):
    place.answer("a", {"v1_1": "answer 1"})
    endpoint.answer = lambda request, number: "1.0" if number == 6 else "well"
    judge.main(place.arguments())
    assert [request["temperature"] for request in endpoint.requests] == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]
    # The official evaluator does not read the number of the sixth reply, either.
    assert place.grades()["v1_1"] == {"model": ["served"], "content": ["1.0"], "score": [0.0]}
    score = mmvet.score(place.data, place.path / "a/merge.jsonl")
    whats = {remark.question_id: remark.what for remark in score.remarks}
    assert score.value == 0.0 and set(whats) == {0, 1, 2, 3}
    assert "gave no number" in whats[1] and "the judge was not asked" in whats[0]


def test_trouble_that_passes(endpoint, place, naps):
    trouble = [(429, {"Retry-After": "77"}, "{}"), (503, {}, "oops"), ConnectionError, (408, {}, "")]
    endpoint.answer = lambda request, number: trouble[number - 1] if number <= 4 else "1"
    judge.main(place.arguments())
    assert len(endpoint.requests) == 4 + SAMPLES and len(endpoint.paid) == SAMPLES
    assert naps[0] == 77.0 and len(naps) == 4 and max(naps[1:]) <= 60


def test_trouble_that_lasts(endpoint, place, naps):
    endpoint.answer = lambda request, number: "0.5" if number <= 2 else (500, {}, "")
    with pytest.raises(SystemExit, match="judge: The endpoint answers 500"):
        judge.main(place.arguments())
    assert len(endpoint.requests) == 12 and len(naps) == 9
    with pytest.raises(ValueError, match="2 of 4 samples lack grades"):
        mmvet.score(place.data, place.path / "a/merge.jsonl")
    endpoint.answer = lambda request, number: "0.5"
    judge.main(place.arguments())
    assert len(endpoint.paid) == SAMPLES


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ((401, {}, json.dumps({"error": {"message": f"bad key {KEY}"}})), "OPENAI_API_KEY"),
        ((404, {}, ""), "knows no model 'gpt-4-0613'"),
        (
            (400, {}, json.dumps({"error": {"message": f"no max_tokens, {KEY}"}})),
            r"It says: no max_tokens, \.\.\.",
        ),
        ((302, {"Location": "http://127.0.0.1:9/"}, ""), "status 302"),
        ((200, {}, "<html>"), "no chat completion"),
        ((200, {}, '{"choices": []}'), "no chat completion"),
    ],
)
def test_what_retrying_does_not_help(endpoint, place, naps, outcome, message):
    endpoint.answer = lambda request, number: outcome
    with pytest.raises(SystemExit, match=message) as error:
        judge.main(place.arguments())
    assert len(endpoint.requests) == 1 and naps == []
    assert KEY not in str(error.value) and endpoint.url not in str(error.value)


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " \t{} "])
def test_a_key_with_blanks_around_it_is_sent_without_them(endpoint, place, monkeypatch, around):
    monkeypatch.setenv("OPENAI_API_KEY", around.format(KEY))
    judge.main(place.arguments())
    assert {header for _, header in endpoint.headers} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "key", ["sk-one\nsk-two", "sk-\x07bell", "sk-\u20ac-euro", "sk-\x85line", "sk-\udcff"]
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_quoted(endpoint, place, monkeypatch, capfd, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(SystemExit, match="OPENAI_API_KEY holds control characters") as error:
        judge.main(place.arguments())
    said = str(error.value) + "".join(capfd.readouterr())
    assert "sk-" not in said and "two" not in said and endpoint.requests == []


def test_no_part_of_the_key_is_shown_or_stored(endpoint, place, capfd):
    """Servers quote keys in their errors, in part; one that quotes it in replies is a badly set proxy."""
    place.answer("a", {"v1_1": "answer 1"})
    message = f"key sk-very...cret, or {KEY[-6:]}, or {KEY[3:]}{KEY} is wrong; ask the hoster"
    endpoint.answer = lambda request, number: (400, {}, json.dumps({"error": {"message": message}}))
    with pytest.raises(SystemExit, match=r"It says: key \.+, or \.\.\., or \.\.\. is wrong; ask the hoster"):
        judge.main(place.arguments())
    choice = {"choices": [{"message": {"content": f"0.7 {KEY}"}}], "model": f"by-{KEY[:9]}"}
    endpoint.answer = lambda request, number: (200, {}, json.dumps(choice))
    judge.main(place.arguments())
    assert place.grades()["v1_1"] == {"model": ["by-..."], "content": ["0.7"], "score": [0.7]}
    said = "".join(capfd.readouterr())
    stored = b"".join(path.read_bytes() for path in place.path.rglob("*") if path.is_file())
    for start in range(len(KEY) - 3):
        assert KEY[start : start + 4] not in said and KEY[start : start + 4].encode() not in stored


def test_killed_and_started_again_pays_nothing_twice(endpoint, place):
    child = []

    def kill(request, number):
        if number == 6:  # in the second round; this reply is never sent
            os.kill(child[0].pid, signal.SIGKILL)
            child[0].wait()
            return ConnectionError
        return "0.5"

    endpoint.answer = kill
    ready = threading.Event()
    original = endpoint.answer
    endpoint.answer = lambda request, number: ready.wait() and original(request, number)
    command = [sys.executable, "-m", "dyvte.benchmarks.judge", *place.arguments("a", 2)]
    child.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))
    ready.set()
    assert child[0].wait() == -signal.SIGKILL and len(endpoint.paid) == 5
    judge.main(place.arguments("a", 2))
    assert len(endpoint.paid) == 2 * SAMPLES and max(Counter(endpoint.paid).values()) == 2
    assert all(grade["score"] == [0.5, 0.5] for grade in place.grades("a", 2).values())
    assert list(place.grades("a", 2)) == list(place.texts)


def test_full_disk_and_read_only_folder(endpoint, place):
    """Grades and replies that were stored stay; of what was paid, only what could not be stored is asked again."""
    samples = {
        f"v1_{n}": {"question": "Q?" + 9 * str(n), "answer": "x", "capability": ["rec"]} for n in range(40)
    }
    (place.data / "mm-vet.json").write_text(json.dumps(samples))
    place.answer("a", {key: f"answer {key}" for key in samples})
    line = told(lambda: judge.main(place.arguments("a", 5)), 20_000)
    assert "judge_replies.sqlite cannot be used as a store of paid replies" in line
    paid = len(endpoint.paid)
    assert 0 < paid < 200 and sum(len(grade["score"]) for grade in place.grades("a", 5).values()) == paid - 1
    closed = read_only(place.path / "closed")
    store = ("--store", str(place.path / "full.sqlite"))
    for more in (("--output-dir", str(closed), *store), ("--store", str(closed / "r.sqlite"))):
        line = told(lambda: judge.main(place.arguments("a", 5, *more)))  # noqa: B023 - called at once
        assert str(closed) in line
    assert not list(closed.iterdir()) and len(endpoint.paid) == paid
    judge.main(place.arguments("a", 5))
    assert len(endpoint.paid) == 201  # one reply could not be stored
    assert all(grade["score"] == [0.5] * 5 for grade in place.grades("a", 5).values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_times(endpoint, place, monkeypatch, seed):
    """Grades only ever grow, nothing but what was under way is paid twice, and the end is the uninterrupted one."""
    chance = random.Random(seed)
    samples = {f"v1_{n}": {"question": f"Q{n}?", "answer": "x", "capability": ["rec"]} for n in range(12)}
    (place.data / "mm-vet.json").write_text(json.dumps(samples))
    for name in ("a", "b"):
        place.answer(name, {key: f"answer {key}" for key in samples})
    store = place.data / "killed.sqlite"

    def reply(request, number):
        # the same each time: some are no number at first, and so asked again
        time.sleep(0.01)
        asked = json.dumps([request["messages"], request["temperature"]])
        value = zlib.crc32(asked.encode())
        return "well" if value % 3 == 0 and request["temperature"] < 1 else f"0.{value % 10}"

    endpoint.answer = reply
    judge.main(place.arguments("b", 3))
    whole, asked_once = place.grades("b", 3), Counter(endpoint.paid)
    endpoint.paid.clear()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [
        sys.executable,
        "-m",
        "dyvte.benchmarks.judge",
        *place.arguments("a", 3, "--store", str(store)),
    ]
    held, under_way, kills = 0, Counter(), 0
    while True:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, began = len(endpoint.paid), time.monotonic()
        while len(endpoint.paid) == before and process.poll() is None and time.monotonic() - began < 60:
            time.sleep(0.002)
        try:
            assert process.wait(timeout=chance.uniform(0, 0.15)) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kills += 1
        assert kills < 60, "no progress from one start to the next"
        time.sleep(0.05)  # for a request that has arrived to be answered
        under_way[endpoint.paid[-1]] += 1
        grades = place.grades("a", 3) if list(place.path.glob("a/grades/*runs.json")) else {}
        for key, grade in grades.items():
            assert grade["score"] == whole[key]["score"][: len(grade["score"])]
        assert held <= (held := sum(len(grade["score"]) for grade in grades.values()))
    assert kills > 3 and place.grades("a", 3) == whole
    assert Counter(endpoint.paid) - asked_once <= under_way


def test_interrupted_between_paying_and_saving(endpoint, place, monkeypatch):
    endpoint.answer = lambda request, number: f"0.{number}"
    save = judge.grading.write_grades
    for stop in range(SAMPLES):
        calls = []

        def failing(path, grades, stop=stop, calls=calls):
            calls.append(1)
            if len(calls) > stop % 2:
                raise OSError("No space left on device")
            save(path, grades)

        monkeypatch.setattr(judge.grading, "write_grades", failing)
        with pytest.raises(SystemExit, match="No space left"):
            judge.main(place.arguments())
    monkeypatch.setattr(judge.grading, "write_grades", save)
    judge.main(place.arguments())
    assert len(endpoint.paid) == SAMPLES
    assert [grade["score"][0] for grade in place.grades().values()] == [0.1, 0.2, 0.3, 0.4]


def test_equal_answers_of_another_method_and_more_rounds_cost_nothing_twice(endpoint, place):
    endpoint.answer = lambda request, number: "0.5" if number <= SAMPLES else "1"
    judge.main(place.arguments("a", 1))
    place.answer("b", {**place.texts, "v1_2": "another"})
    judge.main(place.arguments("b", 1))
    assert len(endpoint.paid) == SAMPLES + 1 and "another" in endpoint.paid[-1][0]
    judge.main(place.arguments("a", 3))
    assert len(endpoint.paid) == SAMPLES + 1 + 2 * SAMPLES
    assert place.grades("a", 3)["v1_0"]["score"] == [0.5, 1.0, 1.0]
    judge.main(place.arguments("a", 3))
    assert len(endpoint.paid) == 3 * SAMPLES + 1


def test_another_judge_is_asked_for_itself(endpoint, place, monkeypatch):
    judge.main(place.arguments())
    monkeypatch.setenv("MMVET_JUDGE_MODEL", "some/judge")
    judge.main(place.arguments())
    assert len(endpoint.paid) == 2 * SAMPLES and endpoint.requests[-1]["model"] == "some/judge"
    assert len(place.grades(model="some_judge")) == SAMPLES


def test_grades_alone_are_gone_on_from(endpoint, place):
    """Without the store of replies, what the grade file holds is not asked again."""
    judge.main(place.arguments())
    (place.data / judge.STORE).unlink()
    judge.main(place.arguments())
    assert len(endpoint.paid) == SAMPLES


def test_stale_grades_are_made_anew(endpoint, place, capsys):
    judge.main(place.arguments())
    place.answer("a", {**place.texts, "v1_2": "another"})
    endpoint.answer = lambda request, number: "0.9"
    judge.main(place.arguments())
    assert len(endpoint.paid) == SAMPLES + 1 and "graded anew" in capsys.readouterr().out
    assert [grade["score"] for grade in place.grades().values()] == [[0.5], [0.5], [0.9], [0.5]]
    (source,) = (place.path / "a/grades").glob("*.source.json")
    source.unlink()
    with pytest.raises(SystemExit, match="is not from this command"):
        judge.main(place.arguments())


def test_two_at_once_pay_once(endpoint, place):
    place.answer("b", place.texts)
    threads = [threading.Thread(target=judge.main, args=(place.arguments(name),)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(endpoint.paid) == SAMPLES and place.grades("a") == place.grades("b")


def test_missing_answers_are_not_paid_for_but_empty_ones_are(endpoint, place):
    place.answer("a", {"v1_1": "", "v1_3": None, "v1_77": "stranger"})
    judge.main(place.arguments())
    assert len(endpoint.paid) == 2 and endpoint.paid[0][0].endswith("Qv1_1? | truth 1 |  | ")
    assert place.grades()["v1_0"] == {"model": [""], "content": [""], "score": [0.0]}
    assert mmvet.score(place.data, place.path / "a/merge.jsonl").value == 25.0


def test_instruction_from_the_evaluators_code(endpoint, place, capsys, monkeypatch):
    code = place.path / "mm-vet_evaluator.py"
    code.write_text(f'import nothing_here\n\nprompt = """{INSTRUCTION}"""\nraise SystemExit\n')
    assert judge.read_instruction(code) == INSTRUCTION == judge.read_instruction(place.prompt)
    code.write_text("prompts = 'x'\n")
    with pytest.raises(ValueError, match="holds no instruction"):
        judge.read_instruction(code)
    code.write_text("prompt = '")
    with pytest.raises(ValueError, match="cannot be read"):
        judge.read_instruction(code)
    with pytest.raises(FileNotFoundError, match="github.com/yuweihao/MM-Vet"):
        judge.read_instruction(None)


def test_settings_that_are_missing(endpoint, place, monkeypatch):
    with pytest.raises(SystemExit, match="--rounds 0"):
        judge.main(place.arguments("a", 0))
    monkeypatch.delenv("OPENAI_API_KEY")
    judge.main(place.arguments())
    assert endpoint.headers[-1][1] is None
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(SystemExit, match="set OPENAI_API_KEY, or OPENAI_BASE_URL"):
        judge.main(place.arguments())
    monkeypatch.setenv("OPENAI_BASE_URL", "nonsense")
    with pytest.raises(SystemExit, match="OPENAI_BASE_URL is no usable address") as error:
        judge.main(place.arguments("a", 2))
    assert "nonsense" not in str(error.value)


def test_unusable_places(endpoint, place):
    with pytest.raises(SystemExit, match="Not a directory|File exists"):
        judge.main(place.arguments("a", 1, "--output-dir", str(place.prompt / "grades")))
    (place.data / judge.STORE).write_text("this is no database, and long enough to be seen as none" * 30)
    with pytest.raises(SystemExit, match=f"{judge.STORE} cannot be used"):
        judge.main(place.arguments())
    assert endpoint.requests == []

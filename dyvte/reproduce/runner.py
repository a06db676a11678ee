"""Runs experiments: keeps those that are done, names those that fail, and stops everything when it is stopped.

An experiment is done when it ended well with the same key and its product exists. The key is a digest of the model,
the gates, the settings that the experiment depends on, the data, and the code of this package. Files enter it by size
and modification time. The code of the commands does not enter it: use FORCE=1 after a change there. Marks are in
``OUT/steps``: ``NAME.done`` (key and seconds), ``NAME.failed`` (the reason), ``NAME.log``.

Called by :mod:`dyvte.reproduce`.
"""

from __future__ import annotations

import glob
import inspect
import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from dyvte.benchmarks.check import ready
from dyvte.io import write_whole
from dyvte.reproduce import work as work_module
from dyvte.reproduce.experiments import EXPERIMENTS, Experiment
from dyvte.reproduce.settings import Settings
from dyvte.reproduce.work import Launch, StepFailed, Work, digest_of, findings_of, name_of, since, state_of

FAILURES = (StepFailed, ValueError, OSError)
"""What an experiment raises that cannot be made."""


def launch(command: list[str], environment: dict[str, str], log: TextIO | None) -> int:
    """Run a command in a process group of its own. When this process is stopped, the whole group is."""
    errors = subprocess.STDOUT if log else None
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=errors, start_new_session=True
    )
    try:
        return process.wait()
    except BaseException:
        with suppress(ProcessLookupError):  # nothing of the group is left
            os.killpg(process.pid, signal.SIGTERM)
            for _ in range(200):  # ten seconds
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        raise


def raise_when_stopped() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, once: nothing disturbs the stopping itself."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
        signals.append(signal.SIGHUP)

    def stop(number, frame) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in signals:
        signal.signal(each, stop)


@dataclass
class Runner:
    """Runs experiments for some models in one output folder.

    Attributes:
        models: more than one only for experiments that take several.
    """

    settings: Settings
    models: Sequence[str]
    out: Path
    launch: Launch = launch

    def run_one(self, experiment: Experiment) -> None:
        """Run one experiment, with its output on the terminal.

        Raises:
            one of FAILURES: it failed.
        """
        with self._locked():
            print(f"{experiment.name}: {self._run(experiment)}")

    def run_all(self) -> list[str]:
        """Run the chosen experiments, with a log for each, and write the report; the names of those that failed."""
        names = self.settings.steps or [entry.name for entry in EXPERIMENTS.values() if entry.in_all]
        begun, failed, entries = time.monotonic(), [], [EXPERIMENTS[name] for name in names]
        with self._locked():
            self._write_inputs(entries)
            print(f"{self.models[0]} -> {self.out}")
            for index, entry in enumerate(entries, start=1):
                place = f"[{index:2}/{len(names)}]"
                print(f"{place} {time.strftime('%H:%M')}  {entry.name:10}  ", end="", flush=True)
                log = self._mark(entry, "log")
                try:
                    print(self._run(entry, log))
                except FAILURES as error:
                    failed.append(entry.name)
                    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
                    ending = text.splitlines()[-5:]
                    write_whole(self._mark(entry, "failed"), "\n".join(ending) + "\n")
                    print(f"FAILED, {error}: {log} ends with", *ending, sep="\n        ", flush=True)
            try:
                self._works()[0].python("dyvte.report.page", self.out, out=self.out / "report.html")
            except StepFailed:
                failed.append("report")
        print(f"all: {len(names)} steps in {since(begun)}")
        return failed

    def _run(self, experiment: Experiment, log_file: Path | None = None) -> str:
        """Run an experiment unless it is done, and leave its mark; how it ended."""
        begun, key, model = time.monotonic(), self.key_of(experiment), glob.escape(name_of(self.models[0]))
        makes = experiment.kind.makes.format(name=experiment.name, model=model)
        done, always = self._mark(experiment, "done"), self.settings.force or experiment.kind.always
        kept = not always and done.is_file() and done.read_text(encoding="utf-8").splitlines()[:1] == [key]
        if kept and any(self.out.glob(makes)):
            return f"kept, {self.out / makes}"
        for mark in (done, self._mark(experiment, "failed")):
            mark.unlink(missing_ok=True)
        with log_file.open("w", encoding="utf-8") if log_file else nullcontext() as log:
            try:
                experiment.run(*self._works(log))
            except (ValueError, OSError) as error:
                if log:
                    print(f"error: {error}", file=log)
                raise
        write_whole(done, f"{key}\nseconds {since(begun).seconds}\n")
        return f"done in {since(begun)}"

    def key_of(self, experiment: Experiment) -> str:
        """Changes when the experiment has to run again."""
        own, kind = self.settings, experiment.kind
        lines = [repr(experiment), *map(inspect.getsource, (kind.run, work_module))]
        lines += [f"{name}={value}" for name, value in own.given(kind.settings).items()]
        samples = [getattr(own, name) for name in ("train_data", "judge_data") if name in kind.settings]
        for work in self._works():
            gates = work.gates if "gates" in kind.settings else None
            lines += [work.model, str(gates), state_of(Path(work.model)), state_of(gates), state_of(*samples)]
            lines += self._data(work, own.benchmarks or experiment.benchmarks)
        return digest_of(lines)

    @staticmethod
    def _data(work: Work, names: Iterable[str]) -> list[str]:
        """Which of these benchmarks are ready, and the state of their files; none of Tiny-LLaVA's, which are made."""
        places = {} if work.made else {name: work.data_of(name) for name in names}
        there = [name for name, place in places.items() if ready(list(findings_of(name, place)))]
        return [f"{name} {state_of(places[name])}" for name in there]

    def _mark(self, experiment: Experiment, ending: str) -> Path:
        return self.out / "steps" / f"{experiment.name}.{ending}"

    def _works(self, log: TextIO | None = None) -> list[Work]:
        return [Work(self.settings, model, self.out, self.launch, log) for model in self.models]

    def _write_inputs(self, experiments: Sequence[Experiment]) -> None:
        """What the report says of the settings: model, settings that are not at their default, data at hand."""
        wanted = {name for entry in experiments for name in entry.kind.settings} - {"benchmarks"}
        given = {"MODEL": self.models[0], **self.settings.given(wanted)}
        benchmarks = sorted({name for entry in experiments for name in entry.benchmarks})
        lines = [f"{name}={value}" for name, value in given.items()]
        lines += [f"benchmark {line.split()[0]}" for line in self._data(self._works()[0], benchmarks)]
        path, text = self.out / "steps/inputs", "\n".join(lines) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Alone in the output folder.

        Raises:
            ValueError: another run is at work there.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.out / ".lock", timeout=0):
                yield
        except Timeout:
            raise ValueError(f"another run is at work in {self.out}") from None

"""Runs experiments: keeps those that are done, names those that fail, and stops everything when it is stopped.

An experiment is done when it ended well with the same key and its product exists. The key is a digest of the model,
the gates, the settings that the experiment depends on, the data, and the code of this package. Files enter it by size
and modification time. The code of the commands does not enter it: use FORCE=1 after a change there. Marks are in
``OUT/steps``: ``NAME.done`` (key and seconds), ``NAME.failed`` (the reason), ``NAME.log``.
"""

from __future__ import annotations

import glob
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from dyvte.benchmarks.check import ready
from dyvte.io import write_whole
from dyvte.reproduce import work as work_module
from dyvte.reproduce.experiments import EXPERIMENTS, Experiment
from dyvte.reproduce.settings import Settings
from dyvte.reproduce.work import Clock, Launch, StepFailed, Work, digest_of, findings_of, name_of, state_of

STOPPED = 130
"""Exit code of a run that was stopped."""


def launch(command: list[str], environment: dict[str, str], log: TextIO | None) -> int:
    """Run a command in a process group of its own. When this process is stopped, the whole group is."""
    errors = subprocess.STDOUT if log else None
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=errors, start_new_session=True
    )
    try:
        return process.wait()
    except BaseException:
        _end_group(process)
        raise


def _end_group(process: subprocess.Popen, patience: float = 10.0) -> None:
    """End a process and what it started: with SIGTERM, and with SIGKILL what is there ``patience`` seconds later."""
    until = time.monotonic() + patience
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < until:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing of the group is left


@contextmanager
def stoppable():
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, once: nothing disturbs the stopping itself."""

    def stop(number, frame) -> None:
        for each in held:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
        signals.append(signal.SIGHUP)
    held = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in held.items():
            signal.signal(each, handler)


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

    def __post_init__(self) -> None:
        self.marks = self.out / "steps"

    def run_one(self, experiment: Experiment) -> int:
        """Run one experiment, with its output on the terminal; the exit code."""
        clock = Clock()
        with self._locked():
            if not experiment.always and self._is_done(experiment):
                print(f"{experiment.name}: kept, {self.out / self._product(experiment)}")
                return 0
            error = self._run(experiment, log=None)
        if error:
            print(f"{experiment.name}: {error}", file=sys.stderr)
            return 1
        if not experiment.always:
            print(f"done in {clock}")
        return 0

    def run_all(self) -> int:
        """Run the chosen experiments, with a log for each, and write the report; the exit code."""
        clock, failed = Clock(), []
        names = self.settings.steps or [entry.name for entry in EXPERIMENTS.values() if entry.in_all]
        with self._locked():
            self._write_inputs(names)
            print(f"{self.models[0]} -> {self.out}")
            for index, name in enumerate(names, start=1):
                print(f"[{index:2}/{len(names)}] {time.strftime('%H:%M')}  {name:10}  ", end="", flush=True)
                if not self._run_logged(EXPERIMENTS[name]):
                    failed.append(name)
            try:
                self._works()[0].python("dyvte.report.page", self.out, "--out", self.out / "report.html")
            except StepFailed:
                failed.append("report")
        if failed:
            tries = "the same command tries these again"
            print(f"all: after {clock}, failed: {' '.join(failed)}; {tries}", file=sys.stderr)
            return 1
        print(f"all steps done in {clock}")
        return 0

    def _run_logged(self, experiment: Experiment) -> bool:
        """Run an experiment unless it is done; whether it ended well."""
        if self._is_done(experiment):
            print("kept")
            return True
        clock, path = Clock(), self.marks / f"{experiment.name}.log"
        with path.open("w", encoding="utf-8") as log:
            error = self._run(experiment, log)
        if not error:
            print(f"done in {clock}")
            return True
        print(f"FAILED after {clock}, {error}: {path} ends with")
        ending = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()[-5:]
        write_whole(self.marks / f"{experiment.name}.failed", "\n".join(ending) + "\n")
        print("".join(f"        {line}\n" for line in ending), end="", flush=True)
        return False

    def _run(self, experiment: Experiment, log: TextIO | None) -> str:
        """Run an experiment and leave its mark; what went wrong, if something did."""
        clock, key = Clock(), self.key_of(experiment)
        done, failed = (self.marks / f"{experiment.name}.{ending}" for ending in ("done", "failed"))
        done.unlink(missing_ok=True)
        failed.unlink(missing_ok=True)
        try:
            experiment.run(self._works(log))
        except (StepFailed, ValueError, OSError) as error:
            if log and not isinstance(error, StepFailed):
                print(f"error: {error}", file=log)
            return str(error)
        if not experiment.always:
            write_whole(done, f"{key}\nseconds {clock.seconds}\n")
        return ""

    def key_of(self, experiment: Experiment) -> str:
        """Changes when the experiment has to run again."""
        own = self.settings
        lines = [repr(experiment), *map(inspect.getsource, (type(experiment), work_module))]
        lines += [f"{name}={value}" for name, value in own.given(experiment.settings).items()]
        for work in self._works():
            gates = work.gates if "gates" in experiment.settings else None
            samples = [
                getattr(own, name) for name in ("train_data", "judge_data") if name in experiment.settings
            ]
            lines += [work.model, str(gates), state_of(Path(work.model)), state_of(gates), state_of(*samples)]
            lines += [] if work.is_tiny else self._data(work, own.benchmarks or experiment.benchmarks)
        return digest_of(lines)

    @staticmethod
    def _data(work: Work, names: Sequence[str]) -> list[str]:
        """Which of these benchmarks are ready, and the state of their files."""
        places = {name: work.data_of(name) for name in names}
        return [
            f"{name} {state_of(place)}"
            for name, place in places.items()
            if ready(list(findings_of(name, place)))
        ]

    def _is_done(self, experiment: Experiment) -> bool:
        mark = self.marks / f"{experiment.name}.done"
        if self.settings.force or not mark.is_file() or not any(self.out.glob(self._product(experiment))):
            return False
        return mark.read_text(encoding="utf-8").splitlines()[:1] == [self.key_of(experiment)]

    def _product(self, experiment: Experiment) -> str:
        return experiment.makes.format(name=experiment.name, model=glob.escape(name_of(self.models[0])))

    def _works(self, log: TextIO | None = None) -> list[Work]:
        return [Work(self.settings, model, self.out, self.launch, log) for model in self.models]

    def _write_inputs(self, names: Sequence[str]) -> None:
        """What the report says of the settings: model, settings that are not at their default, data at hand."""
        wanted = {setting for name in names for setting in EXPERIMENTS[name].settings} - {"benchmarks"}
        given = {"MODEL": self.models[0], **self.settings.given(tuple(wanted))}
        benchmarks = {name for step in names for name in EXPERIMENTS[step].benchmarks}
        lines = [f"{name}={value}" for name, value in given.items()]
        (work,) = self._works()
        if not work.is_tiny:
            lines += [f"benchmark {line.split()[0]}" for line in self._data(work, sorted(benchmarks))]
        path, text = self.marks / "inputs", "\n".join(lines) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text)

    @contextmanager
    def _locked(self):
        """Alone in the output folder.

        Raises:
            ValueError: another run is at work there.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.out / ".lock", timeout=0), stoppable():
                yield
        except Timeout:
            raise ValueError(f"another run is at work in {self.out}") from None

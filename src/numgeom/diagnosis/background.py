"""Who talks to the process that diagnoses steps in the background?

One step is out at a time. The process is started with the first one, and ends with this one.
"""

import contextlib
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numgeom.diagnosis.kept import RandomState, keep_step
from numgeom.diagnosis.worker import environment
from numgeom.errors import FileFormatError, NumgeomError
from numgeom.recording import Program

Answer = Mapping[str, Any]


class BackgroundError(NumgeomError):
    """No other process can be started, or none can be given a step."""


class Background:
    """A process for diagnoses, and the step that it has.

    Attributes:
        step: Number of the step that is out, or None.
        file: The file that holds it.
    """

    def __init__(self) -> None:
        """Nothing is started yet."""
        self.step: int | None = None
        folder = tempfile.mkdtemp(prefix="numgeom-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.file = Path(folder) / "step.pt"
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[Answer] = queue.Queue()

    def give(self, step: int, program: Program, state: RandomState) -> None:
        """Hand out a step. None may be out.

        Raises:
            BackgroundError: if its file cannot be written, or no process can be started.
        """
        assert self.step is None
        try:
            keep_step(self.file, program, step=step, state=state)
            if self._process is None or self._process.poll() is not None:
                self._start()
        except (OSError, RuntimeError, FileFormatError) as error:
            raise BackgroundError(
                f"Steps cannot be handed to a background process ({error}); from now on training "
                "waits for each diagnosis."
            ) from error
        self.step = step
        assert self._process is not None
        assert self._process.stdin is not None
        # The file is our own, so it may call what the step called.
        allow = sorted({str(call.target) for call in program})
        task = {"program": str(self.file), "allow": allow}
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            self._answers.put({"problem": f"the background process has ended ({error})"})

    def answer(self, *, wait: bool) -> tuple[int, Answer] | None:
        """The step that was out and what is said of it; None if nothing yet, or if none is out."""
        if self.step is None:
            return None
        try:
            found = self._answers.get(block=wait)
        except queue.Empty:
            return None
        step, self.step = self.step, None
        return step, found

    def end(self) -> None:
        """End the process; the next step starts another one."""
        self.step = None
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _start(self) -> None:
        self._answers = queue.Queue()
        process = subprocess.Popen(
            [sys.executable, "-m", "numgeom.diagnosis.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment(),
        )
        reader = threading.Thread(target=_read, args=(process, self._answers), daemon=True)
        reader.start()
        self._process = process
        weakref.finalize(self, _end, process)


def _read(process: "subprocess.Popen[str]", answers: "queue.Queue[Answer]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(json.loads(line))
    # Nobody waits for ever: if a step is out, this is its answer.
    answers.put({"problem": f"the background process ended with code {process.wait()}"})


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was not sent is lost with its reader
                stream.close()

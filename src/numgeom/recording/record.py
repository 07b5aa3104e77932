"""How is a training step recorded?

with numgeom.record(model) as recording:
    loss = criterion(model(x), y)
    loss.backward()
program = recording.program
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from numgeom.errors import RecordingError
from numgeom.failures import run_users
from numgeom.recording.buffers import buffers_of
from numgeom.recording.finish import covers, finish, names_of
from numgeom.recording.log import Log
from numgeom.recording.modules import Named, named
from numgeom.recording.program import Program
from numgeom.recording.stream import Stream


class Recording:
    """A step while it is being recorded; afterwards its program.

    A context manager, entered once. Results inside the block are bitwise what they are
    without it. Python's collector of cyclic garbage pauses inside the block: the many small
    objects of a recording would set it off again and again.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        """Prepare to record; nothing happens until the block is entered."""
        if model is not None and not isinstance(model, nn.Module):
            raise RecordingError(
                f"record() takes a torch.nn.Module or nothing, not {type(model).__name__}; "
                "for a training step given as a function use certify(step)"
            )
        if model is not None and not any(p.requires_grad for p in model.parameters()):
            raise RecordingError(
                "no parameter of the model requires a gradient; call "
                "model.requires_grad_(True), or unfreeze the part that you train"
            )
        self._model = model
        self._held: Named | None = None
        self._log: Log | None = None
        self._stream: Stream | None = None
        self._program: Program | None = None
        self._build: Callable[[], Program] | None = None
        self._state = "new"
        self._collecting = False

    @property
    def program(self) -> Program:
        """The recorded program.

        Raises:
            RecordingError: before the block has ended, or if it ended in an error.
        """
        if self._build is not None:
            build, self._build = self._build, None
            self._program = build()
        if self._program is None:
            reason = {
                "new": "the recording has not been entered: use it in a with statement",
                "open": "the recording is still open: read its program after the with block",
            }.get(self._state, "the recording ended in an error and has no program")
            raise RecordingError(reason)
        return self._program

    def __enter__(self) -> "Recording":
        """Start recording the calls of this thread."""
        if self._state != "new":
            raise RecordingError("a recording can be entered once; make a new one for each step")
        self._collecting = gc.isenabled()
        gc.disable()
        try:
            self._start()
        finally:
            if self._state != "open" and self._collecting:
                gc.enable()
        return self

    def _start(self) -> None:
        held = self._held = None if self._model is None else named(self._model)
        names = {} if held is None else names_of(held)
        buffers = buffers_of(self._model)
        self._log = Log(names) if buffers is None else Log(names, copy=buffers.copy)
        if held is not None:
            self._log.memories.foresee((*held.parameters.values(), *held.buffers.values()))
        self._stream = Stream(self._log, held=held)
        self._stream.__enter__()
        self._state = "open"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop recording and check what was recorded, unless the block raised.

        The program is built when it is first asked for: many steps are watched and never looked at.
        """
        del error, trace
        stream, log = self._stream, self._log
        assert stream is not None
        assert log is not None
        roots = list(stream.roots)
        stream.__exit__(None, None, None)
        if self._collecting:
            gc.enable()
        model, self._model = self._model, None
        held, self._held = self._held, None
        self._stream = self._log = None
        self._state = "failed"
        try:
            if kind is None:
                with torch.no_grad():
                    if model is not None and held is not None and not covers(held, log):
                        held = named(model)  # the step gave it parameters
                    self._build = finish(log, held, roots)
                self._state = "closed"
        finally:
            log.close()


def record(model: nn.Module | None = None) -> Recording:
    """Record your own training step.

    Use as a context manager around forward and backward; an optimizer's step may follow inside
    the block. The step runs as it always does, with the same bits.

    Args:
        model: Gives names to parameters and modules. Without it every tensor that collects a
            gradient is a parameter, named after the modules that are called.

    Returns:
        A recording; its `.program` is there after the block.

    Raises:
        RecordingError: no parameter requires a gradient; when the block ends, if no backward
            pass ran, if an operation cannot be recorded (each is named with module and line), or
            if part of the forward pass ran outside of the block.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> with record(model) as recording:
        ...     model(torch.ones(2, 3)).sum().backward()
        >>> recording.program.parameters
        ('weight', 'bias')
    """
    return Recording(model)


def record_step(model: nn.Module, loss_fn: Callable[[nn.Module, Any], Any], batch: Any) -> Program:
    """Run one training step and record it; the model is left as it was.

    Parameters, `.grad`, buffers, the batch and the state of the random generators are afterwards
    what they were before.

    Args:
        model: The model; its training or evaluation mode is kept.
        loss_fn: `loss_fn(model, batch)` returns the loss, one number as a tensor.
        batch: Anything that `loss_fn` understands.

    Returns:
        The program of the step.

    Raises:
        RecordingError: as for `record`, and if the loss is not a tensor with one element that
            depends on a parameter.
    """

    def step() -> torch.Tensor:
        loss = run_users(loss_fn, model, batch)
        _check_loss(loss)
        run_users(loss.backward)
        return loss

    if not isinstance(model, nn.Module):
        raise RecordingError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    return _run_and_restore(step, model)


def record_callable(step: Callable[[], Any]) -> Program:
    """Run a training step given as a function and record it.

    The step runs forward and backward on parameters that it owns. Tensors that it changes in
    place are restored afterwards, and so are the random generators; Python objects that it
    changes are its own affair. Parameters are named after the modules that the step calls.

    Args:
        step: Takes no argument. What it returns is ignored.

    Returns:
        The program of the step.

    Raises:
        RecordingError: as for `record`.
    """
    if not callable(step):
        raise RecordingError(f"a step must be callable, not {type(step).__name__}")
    return _run_and_restore(step, None)


# -- running -----------------------------------------------------------------------------


def _run_and_restore(step: Callable[[], Any], model: nn.Module | None) -> Program:
    parameters = [] if model is None else list(model.parameters())
    recording = Recording(model)
    with _kept_gradients(parameters), _kept_random_state():
        recording.__enter__()
        log = recording._log
        assert log is not None
        try:
            with torch.enable_grad(), torch.inference_mode(False):
                step() if model is not None else run_users(step)
        except BaseException as error:
            leaves = _gradients_before(log, model)
            recording.__exit__(type(error), error, error.__traceback__)
            _restore(log, leaves)
            raise
        leaves = _gradients_before(log, model)
        try:
            recording.__exit__(None, None, None)
        finally:
            _restore(log, leaves)
    return recording.program


def _gradients_before(
    log: Log, model: nn.Module | None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The leaves of a step without a model, and what their `.grad` was before it."""
    if model is not None:  # `_kept_gradients` knows them
        return []
    return [(leaf, log.first_grads.get(id(leaf))) for leaf in log.leaves.values()]


def _restore(log: Log, leaves: list[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    with torch.no_grad():
        log.memories.restore()
    for leaf, gradient in leaves:
        leaf.grad = gradient


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, torch.Tensor):
        raise RecordingError(
            f"loss_fn returned {type(loss).__name__}; it must return the loss as a tensor"
        )
    if loss.numel() != 1:
        raise RecordingError(
            f"loss_fn returned a tensor of shape {tuple(loss.shape)}; the loss must be one "
            "number: take its mean or its sum"
        )
    if not loss.requires_grad:
        raise RecordingError(
            "the loss does not depend on any parameter that requires a gradient; look for "
            "detach(), no_grad() or frozen parameters between the parameters and the loss"
        )


@contextmanager
def _kept_gradients(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    parameters = list(parameters)
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad


@contextmanager
def _kept_random_state() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


__all__ = ["Recording", "record", "record_callable", "record_step"]

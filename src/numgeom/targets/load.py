"""How does a TARGET become a training step, and what is said where it does not?"""

import difflib
import inspect
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from numgeom.errors import NumgeomError, TargetError
from numgeom.examples import EXAMPLES, SEED_LIMIT, EpochReport, load_example
from numgeom.targets.conversion import convert_floating
from numgeom.targets.importing import (
    ImportScope,
    describe_error,
    import_file,
    import_named,
    is_importable_folder,
)

_FORMS = "file.py:function, package.module:function or example:NAME"


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """A named training step: the loss is `loss_fn(model, batch)`, a scalar tensor.

    Attributes:
        name: The TARGET that it was loaded from.
        model: The model whose parameters the gradient belongs to.
        loss_fn: Takes the model and the batch, gives the loss.
        batch: Whatever the loss function expects.
    """

    name: str
    model: nn.Module
    loss_fn: Callable[[nn.Module, Any], Tensor]
    batch: Any


def load_target(
    text: str,
    *,
    seed: int | None = None,
    epochs: int = 0,
    dtype: torch.dtype | None = None,
    progress: Callable[[EpochReport], None] | None = None,
) -> TrainingStep:
    """Load the training step that TARGET names.

    The code of a file may import what lies beside the file, and that of `package.module` what
    lies in the current folder: while it is loaded, and again whenever the loss function runs. In
    between, `sys.path` is as before, and so is `sys.modules` but for the package. Two files
    whose neighbours have the same names never get each other's. The random states of Python,
    NumPy and torch are left as they were.

    Args:
        text: The TARGET.
        seed: Seeds the person's code or the example. None means 0 for an example, and the random
            states as they are for a person's code.
        epochs: Passes of training; for examples only.
        dtype: Floating format to convert the model and the floating tensors of the batch to; the
            model is converted in place. None keeps them; examples are then in float32.
        progress: Called after each pass of an example's training.

    Returns:
        The step.

    Raises:
        TargetError: If no usable step comes out; one sentence says why and what to do. Its cause
            is the person's own exception where there was one.

    Example:
        >>> load_target("example:digits-mlp").model.training
        True
    """
    if seed is not None and not 0 <= seed < SEED_LIMIT:
        raise TargetError(f"The seed is {seed}; give a whole number from 0 to {SEED_LIMIT - 1}.")
    if dtype is not None and not dtype.is_floating_point:
        raise TargetError(f"{dtype} is not a floating-point format; give one like torch.float64.")
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise TargetError(_describe_malformed(text))
    if place == "example":
        try:
            step = load_example(
                name,
                seed=0 if seed is None else seed,
                epochs=epochs,
                dtype=torch.float32 if dtype is None else dtype,
                progress=progress,
            )
        except NumgeomError as error:
            raise TargetError(f"{text}: {error}") from error
        return TrainingStep(text, *step)
    if epochs != 0:
        raise TargetError(
            f"{text} cannot be trained for {epochs} epochs, only an example:NAME can; train the "
            "model inside the function."
        )
    try:
        file = _find_file(text, place)
        folder = Path.cwd() if file is None else file.parent
        private = file is not None and not is_importable_folder(folder)
        scope = ImportScope(folder, private=private)
    except (OSError, ValueError) as error:  # a folder without permission, an impossible name
        raise TargetError(f"{text}: {place} cannot be looked up ({error}); check it.") from error
    with scope.opened(), _restored_random_states(seed):
        module = import_named(text, place) if file is None else import_file(text, file)
        result = _call(text, _find_function(text, module, name))
        model, loss_fn, batch = _checked_step(text, result)
        if dtype is not None:
            batch = _convert(text, model, loss_fn, batch, dtype)
    return TrainingStep(text, model, scope.wrap(loss_fn), batch)


def _describe_malformed(text: str) -> str:
    if text in EXAMPLES:
        return f"TARGET {text!r} lacks a colon; write example:{text} for the built-in example."
    if ":" not in text:
        return f"TARGET {text!r} lacks a colon and a function name; write {_FORMS}."
    return f"TARGET {text!r} lacks a name before or after the colon; write {_FORMS}."


def _find_file(text: str, place: str) -> Path | None:
    """Find the file that the part before the colon names; None if it names a module."""
    path = Path(os.path.expanduser(place))
    is_module_name = all(part.isidentifier() for part in place.split("."))
    if is_module_name and path.suffix != ".py" and not path.is_file():
        return None
    if path.is_dir():
        raise TargetError(f"{text}: {place} is a folder; name a .py file in it.")
    if path.is_file() and path.suffix != ".py":
        raise TargetError(f"{text}: {place} is not a .py file; write {_FORMS}.")
    if not path.is_file():
        beside = sorted(str(other) for other in path.parent.glob("*.py"))
        near = difflib.get_close_matches(str(path), beside, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the current folder is {Path.cwd()}."
        raise TargetError(f"{text}: there is no file {place}; {hint}")
    return path.resolve()


def _find_function(text: str, module: ModuleType, name: str) -> Callable[..., Any]:
    try:
        found = getattr(module, name)
    except AttributeError as error:
        functions = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        near = difflib.get_close_matches(name, functions, n=1)
        if near:
            hint = f"did you mean {near[0]}?"
        elif functions:
            hint = f"name one that it defines ({', '.join(functions[:5])})."
        else:
            hint = "define one that returns (model, loss_fn, batch)."
        place = text.rpartition(":")[0]
        raise TargetError(f"{text}: {place} has no function {name!r}; {hint}") from error
    if not callable(found) or isinstance(found, nn.Module):
        raise TargetError(
            f"{text}: {name} is of type {_type_name(found)}, not a function; name a function "
            "without arguments that returns (model, loss_fn, batch)."
        )
    return found


def _call(text: str, function: Callable[..., Any]) -> Any:
    try:
        parameters = tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature; the call will tell
        parameters = ()
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise TargetError(
            f"{text}: the function needs arguments ({', '.join(needed)}) but is called with none; "
            "give them default values."
        )
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise TargetError(
            f"{text}: the function failed{describe_error(error)}; mend that line."
        ) from error


def _checked_step(text: str, result: Any) -> tuple[nn.Module, Callable[..., Any], Any]:
    if not isinstance(result, tuple):
        raise TargetError(
            f"{text}: the function returned an object of type {_type_name(result)}; return the "
            "tuple (model, loss_fn, batch)."
        )
    if len(result) != 3:
        types = ", ".join(_type_name(item) for item in result)
        raise TargetError(
            f"{text}: the function returned {len(result)} values ({types}); return three, "
            "(model, loss_fn, batch)."
        )
    model, loss_fn, batch = result
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"{text}: the first value returned is of type {_type_name(model)}, not a "
            "torch.nn.Module; return (model, loss_fn, batch) in this order."
        )
    if not callable(loss_fn):
        raise TargetError(
            f"{text}: the second value returned is of type {_type_name(loss_fn)}, which cannot be "
            "called; return (model, loss_fn, batch), where loss_fn(model, batch) is the loss."
        )
    return model, loss_fn, batch


def _convert(
    text: str, model: nn.Module, loss_fn: Callable[..., Any], batch: Any, dtype: torch.dtype
) -> Any:
    try:
        model.to(dtype)
        if isinstance(loss_fn, nn.Module):
            loss_fn.to(dtype)
        return convert_floating(batch, dtype)
    except Exception as error:
        raise TargetError(
            f"{text}: the step cannot be converted to {dtype}{describe_error(error)}; make it in "
            "that format inside the function."
        ) from error


@contextmanager
def _restored_random_states(seed: int | None) -> Iterator[None]:
    """Seed the global generators, unless seed is None; put their states back afterwards."""
    # NumPy's old global generator too: the person's code may draw from it.
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _type_name(value: Any) -> str:
    return type(value).__qualname__

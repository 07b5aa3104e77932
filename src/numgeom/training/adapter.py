"""What do the adapters of training libraries have in common?"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from numgeom.diagnosis import Monitor
from numgeom.errors import NumgeomError

MakeMonitor = Callable[[nn.Module], Monitor]


class AdapterError(NumgeomError):
    """A training library cannot be used."""


def imported(module: str, package: str) -> ModuleType:
    """A module of a library that need not be installed.

    Raises:
        AdapterError: if it cannot be imported; says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise AdapterError(
            f"This adapter needs {package}, which cannot be imported ({error}); install it with: "
            f"pip install {package}"
        ) from error


class Watch:
    """One monitor that is made when the model is known.

    Attributes:
        monitor: The monitor; None before the first step.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """Keep the options of the monitor."""
        self._options = options
        self.monitor: Monitor | None = None

    def begin(self, model: nn.Module) -> None:
        """Start a step of the model."""
        if self.monitor is None:
            self.monitor = Monitor(model, **self._options)
        self.monitor.begin()

    def end(self) -> None:
        """End the step after its backward pass."""
        if self.monitor is not None:
            self.monitor.end()

    def abandon(self) -> None:
        """Forget a step that never ended."""
        if self.monitor is not None:
            self.monitor.abandon()

    def finish(self) -> None:
        """End the run: what is still diagnosed in the background is waited for."""
        if self.monitor is not None:
            self.monitor.abandon()
            self.monitor.wait()

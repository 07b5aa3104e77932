"""How is a run of Lightning watched?"""

from typing import Any

from numgeom.training.adapter import Watch, imported


def lightning_callback(**options: Any) -> Any:
    """Make a callback for `lightning.Trainer(callbacks=[...])` that watches every n-th batch.

    The forward and backward pass of a batch are recorded and diagnosed; the optimizer's step is
    not. With accumulated gradients every batch counts as a step.

    Args:
        **options: Of `numgeom.Monitor`: every, budget, history, keep, on_finding,
            on_step, background.

    Returns:
        A `lightning.Callback`; its `watch.monitor.last` is the last step that was looked at.

    Raises:
        AdapterError: if Lightning is not installed.

    Example:
        trainer = lightning.Trainer(callbacks=[lightning_callback(every=100)])
    """
    base: Any = imported("lightning", "lightning").Callback

    class NumgeomCallback(base):
        """Watches steps with `numgeom.Monitor`."""

        def __init__(self) -> None:
            super().__init__()
            self.watch = Watch(options)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            del trainer, rest
            self.watch.begin(pl_module)

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            del trainer, pl_module
            self.watch.end()

        def on_train_batch_end(self, *rest: Any) -> None:
            del rest
            self.watch.abandon()  # a batch without a backward pass

        def on_train_end(self, *rest: Any) -> None:
            del rest
            self.watch.finish()

        def on_exception(self, *rest: Any) -> None:
            del rest
            self.watch.abandon()

    return NumgeomCallback()

"""How is a run of the Hugging Face Trainer watched?"""

from typing import Any

from numgeom.training.adapter import Watch, imported


def hugging_face_callback(**options: Any) -> Any:
    """Make a callback for `transformers.Trainer(callbacks=[...])` that watches every n-th step.

    What is recorded reaches from the start of an optimizer step to just before the optimizer
    changes the parameters: all its forward and backward passes, and gradient clipping.

    Args:
        **options: Of `numgeom.Monitor`: every, budget, history, keep, on_finding,
            on_step, background.

    Returns:
        A `transformers.TrainerCallback`; its `watch.monitor.last` is the last step looked at.

    Raises:
        AdapterError: if transformers is not installed.

    Example:
        trainer = transformers.Trainer(model, arguments, callbacks=[hugging_face_callback()])
    """
    base: Any = imported("transformers", "transformers").TrainerCallback

    class NumgeomCallback(base):
        """Watches steps with `numgeom.Monitor`."""

        def __init__(self) -> None:
            super().__init__()
            self.watch = Watch(options)

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            del args, state, control
            self.watch.abandon()
            self.watch.begin(given["model"])

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            del args, state, control, given
            self.watch.end()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            del args, state, control, given
            self.watch.finish()

    return NumgeomCallback()

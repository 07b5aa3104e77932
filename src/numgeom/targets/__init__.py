"""Which training step does the text TARGET of the command line name?

TARGET is `file.py:function`, `package.module:function` (the function takes no arguments and
returns `(model, loss_fn, batch)`), or `example:NAME`.
"""

from numgeom.targets.conversion import convert_floating
from numgeom.targets.load import TrainingStep, load_target

__all__ = ["TrainingStep", "convert_floating", "load_target"]

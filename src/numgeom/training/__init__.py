"""Watching the training runs of other libraries: Lightning, Hugging Face, TensorBoard.

Each library is imported when its adapter is made, and not before.
"""

from numgeom.training.hugging_face import hugging_face_callback
from numgeom.training.lightning import lightning_callback
from numgeom.training.tensorboard import TensorBoardSteps

__all__ = ["TensorBoardSteps", "hugging_face_callback", "lightning_callback"]

"""How do watched steps get into TensorBoard?"""

import math
from pathlib import Path
from typing import Any

from numgeom.diagnosis import WatchedStep
from numgeom.training.adapter import imported


class TensorBoardSteps:
    """Writes every watched step to TensorBoard; for `Monitor(on_step=...)`.

    Scalars below "numgeom/": loss, loss_error, gradient_error (relative), underflow_share,
    headroom_binades, findings, and gradient_norm of every parameter. Findings are texts.

    Args:
        writer: A `torch.utils.tensorboard.SummaryWriter`, or the folder for a new one.

    Raises:
        AdapterError: if TensorBoard is not installed.
    """

    def __init__(self, writer: Any) -> None:
        """Keep the writer, or make one."""
        if isinstance(writer, str | Path):
            writer = imported("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(writer))
        self._writer = writer

    def __call__(self, watched: WatchedStep) -> None:
        """Write one step."""
        scalars = {"loss": watched.loss}
        scalars |= {f"gradient_norm/{n}": size for n, size in watched.gradient_norms.items()}
        if watched.diagnosis is not None:
            found = watched.diagnosis
            scalars |= {
                "loss_error": found.loss_error,
                "gradient_error": found.gradient_error,
                "underflow_share": found.underflow_share,
                "headroom_binades": found.headroom_binades,
                "findings": float(len(found)),
            }
            if found:
                self._writer.add_text("numgeom/findings", str(found), watched.step)
        for name, value in scalars.items():
            if not math.isnan(value):
                self._writer.add_scalar(f"numgeom/{name}", value, watched.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the writer."""
        self._writer.close()

"""What are the ops on whole tensors over the real numbers? The oracles of all of them."""

from tests.ops.accumulation_oracle import ACCUMULATION
from tests.ops.choice_oracle import CHOICES
from tests.ops.laws import Oracle
from tests.ops.movement_oracle import MOVEMENT
from tests.ops.sums_oracle import SUMS
from tests.ops.windows_oracle import WINDOWS

ORACLES: dict[str, Oracle] = {**MOVEMENT, **SUMS, **ACCUMULATION, **CHOICES, **WINDOWS}

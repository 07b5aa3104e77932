"""Which loss do the tests on the digits use?"""

from torch import Tensor, nn
from torch.nn import functional as F


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])

"""Which models and data can a person try the package on, without a download?

A *step* is a triple (model, loss_fn, batch) with `loss_fn(model, batch)` a scalar tensor. An
*example* is a recipe for such a step: data, model, seed, optional training.
"""

from numgeom.examples.data import DataError, Dataset, DataStamp
from numgeom.examples.recipes import (
    EXAMPLES,
    SEED_LIMIT,
    Example,
    ExampleError,
    Step,
    load_example,
)
from numgeom.examples.training import EpochReport, train

__all__ = [
    "EXAMPLES",
    "SEED_LIMIT",
    "DataError",
    "DataStamp",
    "Dataset",
    "EpochReport",
    "Example",
    "ExampleError",
    "Step",
    "load_example",
    "train",
]

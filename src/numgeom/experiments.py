"""The former name of `numgeom.examples`, kept for scripts that import from it."""

from numgeom.examples import (
    EXAMPLES,
    SEED_LIMIT,
    DataError,
    Dataset,
    DataStamp,
    EpochReport,
    Example,
    ExampleError,
    Step,
    load_example,
    train,
)

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

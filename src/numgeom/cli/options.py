"""Which values can the options of several commands take?"""

import enum


class Dtype(enum.StrEnum):
    """Formats that a step can be converted to."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class Device(enum.StrEnum):
    """Devices that a step can run on."""

    CPU = "cpu"
    CUDA = "cuda"


class Method(enum.StrEnum):
    """Ways to obtain an error."""

    AUTO = "auto"
    BALL = "ball"
    KANTOROVICH = "kantorovich"
    FUNCTIONAL = "functional"
    REFERENCE = "reference"

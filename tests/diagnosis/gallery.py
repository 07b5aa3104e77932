"""Defective programs, each with its healthy twin, for tests of the diagnosis."""

from tests.diagnosis.cases import Case
from tests.diagnosis.gallery_digits import DIGITS
from tests.diagnosis.gallery_gradients import GRADIENTS
from tests.diagnosis.gallery_values import VALUES

CASES: tuple[Case, ...] = (*VALUES, *DIGITS, *GRADIENTS)

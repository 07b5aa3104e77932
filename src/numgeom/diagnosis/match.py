"""What is known of a formula that was recognised in a program?"""

from dataclasses import dataclass

from torch import fx

from numgeom.diagnosis.rederive import Formula


@dataclass(frozen=True)
class Match:
    """A formula that was recognised.

    Attributes:
        name: What it is called.
        node: The call whose result is to be replaced.
        reads: The nodes whose values the stable form needs.
        stable: The same number by a stable formula.
        advice: The stable form as a person writes it.
        always: Whether it is reported wherever it stands, since the stable form is a drop-in
            replacement; else only where the numbers show that it suffers.
        differs_at_zero: Whether the stable form is meant to differ where what it reads is 0, a
            pole of the formula.
        unguarded: The formula without a safeguard of its own, such as a clamped logarithm; the
            stable form is compared with it, and the advice says so. None: the call itself.
    """

    name: str
    node: fx.Node
    reads: tuple[fx.Node, ...]
    stable: Formula
    advice: str
    always: bool = False
    differs_at_zero: bool = False
    unguarded: Formula | None = None

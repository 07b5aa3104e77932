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
    """

    name: str
    node: fx.Node
    reads: tuple[fx.Node, ...]
    stable: Formula
    advice: str
    always: bool = False

"""What is a random program, and which simpler ones are near it?

A recipe is data: names of blocks, a loss, a structure, a format, a scale of the inputs, and a seed
for everything that is drawn. The same recipe makes the same program, so a recipe that is printed is
a repro, and a simpler recipe that fails, too, is a better one.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from numgeom.recording import Program, record_callable
from tests.fuzz.data import SCALES, WEIGHTS
from tests.fuzz.elementwise import KINKED, PAIRS, SMOOTH
from tests.fuzz.layers import CONTRACTIONS, NORMS, SEQUENCES, WINDOWS
from tests.fuzz.losses import LOSSES
from tests.fuzz.maker import Block, Maker, Network
from tests.fuzz.steps import FORMATS, STRUCTURES, autocast, island
from tests.fuzz.tensors import MOVEMENT, REDUCTIONS, WRITES

FAMILIES: dict[str, dict[str, Block]] = {
    "smooth": SMOOTH,
    "kinked": KINKED,
    "pairs": PAIRS,
    "reductions": REDUCTIONS,
    "movement": MOVEMENT,
    "writes": WRITES,
    "contractions": CONTRACTIONS,
    "windows": WINDOWS,
    "norms": NORMS,
    "sequences": SEQUENCES,
}
BLOCKS: dict[str, Block] = {k: b for family in FAMILIES.values() for k, b in family.items()}
FAMILY_OF = {name: family for family, blocks in FAMILIES.items() for name in blocks}


@dataclass(frozen=True)
class Recipe:
    """A random program.

    Attributes:
        seed: Of all numbers that are drawn.
        blocks: Names, in order.
        loss: Name.
        structure: Name.
        format: Name.
        scale: Name of the size of the inputs.
        batch: Number of rows.
        width: Number of columns.
        ends: "bare": the inputs themselves are the parameter, so that next to nothing rounds but
            what is tried; "weighted": the result is multiplied by a parameter besides; "layers":
            between an affine layer and such a product.
    """

    seed: int
    blocks: tuple[str, ...] = ()
    loss: str = "sum"
    structure: str = "plain"
    format: str = "float64"
    scale: str = "unit"
    batch: int = 2
    width: int = 4
    ends: str = "bare"

    @property
    def families(self) -> frozenset[str]:
        """What it is made of, for statistics."""
        return frozenset(
            [FAMILY_OF[b] for b in self.blocks]
            + [f"loss: {self.loss}", f"structure: {self.structure}", f"format: {self.format}"]
            + [f"scale: {self.scale}"]
        )

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset((*self.blocks, self.loss, self.structure, self.format, self.scale))


def random_recipe(seed: int) -> Recipe:
    """Draw a recipe; all families of blocks are as likely, and so are few blocks and many."""
    rng = random.Random(seed)
    ends = rng.choice(("bare", "weighted", "layers"))
    count = rng.randint(0, 1) if ends == "bare" else rng.randint(1, 2 if ends == "weighted" else 4)
    blocks = tuple(rng.choice(list(FAMILIES[rng.choice(list(FAMILIES))])) for _ in range(count))
    return Recipe(
        seed,
        blocks,
        rng.choice(list(LOSSES)),
        "plain" if rng.random() < 0.5 else rng.choice(list(STRUCTURES)),
        rng.choice(list(FORMATS)),
        rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0],
        rng.randint(1, 3),
        rng.choice((4, 4, 6)),
        ends,
    )


def build(recipe: Recipe) -> Program:
    """Make the program of a recipe, and record it.

    Raises:
        RuntimeError: torch cannot do this, for instance in this format.
    """
    torch.manual_seed(recipe.seed)
    dtype = FORMATS[recipe.format]
    model = Network()
    make = Maker(model, random.Random(recipe.seed), recipe.batch, recipe.width, dtype)

    def drawing_for(part: str) -> Maker:
        """What a part draws does not depend on the other parts."""
        make.rng = random.Random(f"{recipe.seed} {part}")
        return make

    drawn = make.numbers(recipe.batch, recipe.width).double()
    x = SCALES[recipe.scale](make, drawn).to(dtype)
    if recipe.ends == "layers":
        first, shift = make.parameter(recipe.width), make.parameter(recipe.width)
        model.layers.append(lambda h: h * first + shift)
    else:
        model.register_parameter("x", torch.nn.Parameter(x))
        x = torch.zeros_like(x)  # the model takes its parameter in their place
        model.layers.append(lambda h: model.x)
    for name in recipe.blocks:
        model.layers.append(island(recipe.format, BLOCKS[name](drawing_for(name))))
    if recipe.ends != "bare":
        last = drawing_for("last").parameter(recipe.width)
        model.layers.append(lambda h: h * last)
    loss = LOSSES[recipe.loss](drawing_for("loss"))

    def objective(model: Network, x: torch.Tensor) -> torch.Tensor:
        with autocast(recipe.format):
            return loss(model(x))

    step = STRUCTURES[recipe.structure](drawing_for("structure"), model, objective, x)
    with torch.random.fork_rng():
        return record_callable(step)


def simpler(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes with one thing less."""
    for i in range(len(recipe.blocks)):
        yield replace(recipe, blocks=recipe.blocks[:i] + recipe.blocks[i + 1 :])
    plain = Recipe(recipe.seed)
    for name in ("structure", "loss", "scale", "format", "width", "ends"):
        if getattr(recipe, name) != getattr(plain, name):
            yield replace(recipe, **{name: getattr(plain, name)})
    if recipe.batch > 1:
        yield replace(recipe, batch=recipe.batch - 1)

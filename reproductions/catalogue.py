"""Which published tables and figures can be made again? The list behind `numgeom reproduce`.

A module with the work behind a name is imported when the name is asked for.
"""

import difflib
from collections.abc import Callable
from importlib import import_module

from reproductions.outcome import Outcome, Reproduction, ReproductionError, Settings


def _lazy(module: str, function: str) -> Callable[[Settings], Outcome]:
    def run(settings: Settings) -> Outcome:
        return getattr(import_module(f"reproductions.{module}"), function)(settings)

    return run


# One line per table or figure: name, title, the module below `reproductions`, its function.
_ENTRIES: tuple[tuple[str, str, str, str], ...] = (
    ("attention", "Error of attention against sequence length and bits", "attention", "attention"),
    ("instabilities", "Injected instabilities that are found", "instabilities", "instabilities"),
    ("table1", "Tightness of error bounds, by model", "table1", "table1"),
    ("maxpool-table1", "Derivatives of zero: two ways to write max", "maxpool.programs", "table1"),
    ("maxpool-table2", "Volume of the bifurcation zone by format", "maxpool.volume", "table2"),
    ("maxpool-table3", "Derivatives of zero: max through ReLU", "maxpool.programs", "table3"),
    ("maxpool-table4", "Thresholds tau1 and tau2 by network", "maxpool.thresholds", "table4"),
    ("maxpool-fig1", "Native against minimal max-pool, LeNet-5", "maxpool.variation", "fig1"),
    ("maxpool-fig2", "One program run twice, LeNet-5", "maxpool.variation", "fig2"),
    ("maxpool-fig3", "ReLU'(0) = 0 against 1, LeNet-5", "maxpool.variation", "fig3"),
    ("maxpool-fig4", "Affected mini-batches by VGG network", "maxpool.volume", "fig4"),
    ("maxpool-fig5", "Training VGG-11 with SGD, by beta", "maxpool.training", "fig5"),
    ("maxpool-fig6", "Drift of networks that differ in beta", "maxpool.distance", "fig6"),
    ("maxpool-fig7", "The programs max1, max2 and zero", "maxpool.programs", "fig7"),
    ("maxpool-fig8", "Tied cells of a max-pool on an image", "maxpool.ties", "fig8"),
    ("maxpool-fig9", "Max through ReLU: programs and LeNet-5", "maxpool.variation", "fig9"),
    ("maxpool-fig10", "Two derivatives of norm pooling, LeNet-5", "maxpool.variation", "fig10"),
    ("maxpool-fig11", "Training VGG-11 with Adam, by beta", "maxpool.training", "fig11"),
    ("maxpool-fig12", "Training LeNet-5 with SGD, by beta", "maxpool.training", "fig12"),
    ("maxpool-fig13", "Training ResNet-18 with SGD, by beta", "maxpool.training", "fig13"),
    ("maxpool-training", "Training LeNet-5: the whole grid", "maxpool.training", "training"),
    ("maxpool-training-vgg13", "Training VGG-13, by beta", "maxpool.networks", "vgg13"),
    ("maxpool-training-vgg16", "Training VGG-16, by beta", "maxpool.networks", "vgg16"),
    ("maxpool-training-vgg19", "Training VGG-19, by beta", "maxpool.networks", "vgg19"),
    ("maxpool-training-svhn", "Training VGG-11 on SVHN, by beta", "maxpool.networks", "svhn"),
    ("maxpool-training-densenet121", "Training DenseNet-121", "maxpool.networks", "densenet121"),
)

REPRODUCTIONS: dict[str, Reproduction] = {
    name: Reproduction(name=name, title=title, run=_lazy(module, function))
    for name, title, module, function in _ENTRIES
}


def find_reproduction(name: str) -> Reproduction:
    """Look a reproduction up by its name.

    Raises:
        ReproductionError: If there is none of that name; the message lists close names or all.
    """
    if name in REPRODUCTIONS:
        return REPRODUCTIONS[name]
    close = difflib.get_close_matches(name, REPRODUCTIONS)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(REPRODUCTIONS)}."
    raise ReproductionError(f"There is no reproduction named {name!r}; {hint}")

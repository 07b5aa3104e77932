"""How is it shown where an error comes from? A tree of modules, with bars."""

from collections.abc import Iterable

from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from numgeom.arithmetic.printing import percent
from numgeom.results.source import Source
from numgeom.visible import visible

_BAR = 20
_LEAST_SHARE = 0.005


def sources_view(sources: Iterable[Source], *, rows: int = 40) -> Group:
    """Show phases, in them modules, in them ops, each with its share of the squared error.

    Args:
        sources: What `Certificate.sources` and `Sources.for_certificate` give.
        rows: Most lines below each phase; smaller shares are summed up in one.
    """
    found = tuple(sources)
    if not found:
        return Group(Text("No sources are known: there is no error, or nobody asked for them."))
    tree = Tree(Text("Sources of the error [share of its square]", style="bold"))
    for phase in sorted({s.phase for s in found}, key=lambda p: -_total(found, phase=p)):
        inside = tuple(s for s in found if s.phase == phase)
        branch = tree.add(_line(phase, _total(inside)))
        modules = sorted({s.module for s in inside}, key=lambda m: -_total(inside, module=m))
        for module in modules[:rows]:
            here = tuple(s for s in inside if s.module == module)
            if _total(here) < _LEAST_SHARE:
                continue
            leaf = branch.add(_line(module or "(outside of modules)", _total(here)))
            for each in sorted(here, key=lambda s: -s.error_share)[:rows]:
                if each.error_share >= _LEAST_SHARE:
                    leaf.add(_line(f"{each.op}  {each.source}", each.error_share))
    guarantee = found[0].guarantee.name
    small = Text(
        f"Shares below {percent(_LEAST_SHARE)} are counted, but not shown. {guarantee}.", "dim"
    )
    return Group(tree, small)


def _total(sources: Iterable[Source], **wanted: str) -> float:
    return sum(s.error_share for s in sources if all(getattr(s, k) == v for k, v in wanted.items()))


def _line(name: str, share: float) -> Text:
    filled = round(share * _BAR)
    return Text(f"{'█' * filled}{'░' * (_BAR - filled)} {percent(share):>6}  {visible(name)}")

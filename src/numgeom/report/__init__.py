"""How are results shown to a person? Renderers arrange results and compute nothing."""

from numgeom.report.console import console
from numgeom.report.progress import progress_bar
from numgeom.report.table import headline, to_text, view

__all__ = ["console", "headline", "progress_bar", "to_text", "view"]

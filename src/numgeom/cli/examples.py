"""numgeom examples: which training steps are built in?"""

from typing import Annotated

import typer

from numgeom.cli.errors import clean_errors, say

app = typer.Typer()


@app.command("examples")
def _examples(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the built-in training steps. They need scikit-learn, and no download."""
    with clean_errors(debug):
        from numgeom.examples import EXAMPLES

        summaries = {f"example:{name}": each.summary for name, each in EXAMPLES.items()}
        if as_json:
            import json

            say(json.dumps(summaries, indent=2))
            return
        width = max(map(len, summaries), default=0)
        for name, summary in summaries.items():
            say(f"{name:<{width}}  {summary}")

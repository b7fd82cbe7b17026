"""The tutorial as a Jupyter notebook: its text as Markdown cells, its Python examples as code cells. No torch."""

import json
import re

PAGE = "tutorial.md"
PATH = "tutorial.ipynb"
_FENCE = re.compile(r"^```python\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)


def cells(markdown: str) -> list[tuple[str, str]]:
    """(`markdown` or `code`, text) of each cell, in the order of the page."""
    found, end = [], 0
    for fence in _FENCE.finditer(markdown):
        found += [("markdown", markdown[end : fence.start()].strip()), ("code", fence[1].rstrip())]
        end = fence.end()
    found.append(("markdown", markdown[end:].strip()))
    return [(kind, text) for kind, text in found if text]


def as_notebook(markdown: str) -> str:
    """The page as a notebook (nbformat 4.5), without outputs."""
    made: list[dict] = []
    for number, (kind, text) in enumerate(cells(markdown)):
        cell = {"id": f"cell-{number}", "cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"

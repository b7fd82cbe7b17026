"""Live examples of schedules: what a fenced block `schedule` or `mistake` on a hand-written page comes to. No torch.

Such a block holds keys of a recipe's `model` section: `layers`, and where they matter `n_layers` and `blocks`. Without
`blocks`, those of BLOCKS are defined.
"""

import re
import tempfile
import textwrap
from html import escape
from pathlib import Path

from zoo.docs.strip import spoken, strip
from zoo.errors import Problem, RecipeError, ZooError
from zoo.recipe import Recipe, load_recipe

BLOCKS = "{local: {kind: window, window: 512}, global: {kind: full}, full: {kind: full}, ansa: {kind: ansa}}"
_FENCE = re.compile(r"^```(schedule|mistake)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RECIPE = "name: example\nmodel:\n  d_model: 1024\n  vocab_size: 264\n  max_seq_len: 8192\n  ffn: {d_ff: 2816}\n"


def with_results(markdown: str, page: str) -> str:
    """The page with the result after each of its examples: the strip of layers, or the message a mistake gets.

    Raises ZooError, naming the page, for a schedule that is refused and for a mistake that is not.
    """
    return _FENCE.sub(lambda found: _shown(found[1], found[2], page), markdown)


def results(markdown: str, page: str) -> list[str]:
    """`4 layers: ...` or the message, of every example of a page."""
    return [_result(found[1], found[2], page)[0] for found in _FENCE.finditer(markdown)]


def _shown(kind: str, text: str, page: str) -> str:
    result, recipe = _result(kind, text, page)
    source = f"```yaml\n{text}```"
    if recipe is None:
        return f'{source}\n\n<pre class="zoo-refused">{escape(result)}</pre>'
    return f"{source}\n\n{strip(recipe.model.expanded(), recipe.model.d_model)}\n{result}\n{{ .zoo-result }}"


def _result(kind: str, text: str, page: str) -> tuple[str, Recipe | None]:
    """(what to say, the recipe) of an example; a mistake has no recipe."""
    try:
        recipe = read(text)
    except RecipeError as error:
        lines = "\n".join(str(Problem(problem.message, key=problem.key)) for problem in error.problems)
        if kind == "mistake":
            return lines, None
        raise ZooError(f"{page}: this schedule is refused:\n{text}{lines}") from error
    if kind == "mistake":
        raise ZooError(f"{page}: this should be a mistake and is none:\n{text}")
    return spoken(recipe.model.expanded()), recipe


def read(text: str) -> Recipe:
    """The recipe whose `model` section has these keys and the usual ones. Raises RecipeError, as for any recipe."""
    own = text if re.search("^blocks:", text, re.MULTILINE) else f"blocks: {BLOCKS}\n{text}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.yaml"
        path.write_text(_RECIPE + textwrap.indent(own, "  "), encoding="utf-8")
        return load_recipe(path)

"""What the zoo prints as JSON is JSON: NaN and infinity, which Python would write, are not."""

import ast
import json
from pathlib import Path

import pytest

import zoo
from zoo.json_text import json_text


def test_numbers_that_json_lacks_are_null():
    value = {"a": float("nan"), "b": [1.5, (float("inf"), {"c": -float("inf")})], "d": "NaN", "e": True, "f": 3}
    assert json.loads(json_text(value)) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN", "e": True, "f": 3}
    assert json_text({"a": [1]}, indent=None) == '{"a": [1]}\n'


def test_text_of_others_stays_as_it_is():
    assert json.loads(json_text({"\x1b": "\ud800"})) == {"\x1b": "\ud800"}


def writes_json_itself(tree: ast.Module) -> bool:
    """Whether a module prints JSON, or is asked for it by --json, and calls json.dumps."""
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return "json.dumps" in called and bool(names & {"as_json", "eval_command", "generate_command", "list_command"})


@pytest.mark.parametrize("room", ["cli", "report", "runs", "evaluation", "inference", "study"])
def test_what_answers_json_writes_it_by_json_text(room):
    root = Path(zoo.__file__).parent
    found = [path for path in (root / room).glob("*.py") if writes_json_itself(ast.parse(path.read_text()))]
    assert found == []
    assert "json.dumps" not in "".join(path.read_text() for path in (root / "cli").glob("*.py"))

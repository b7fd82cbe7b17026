"""A module of ours that does not import fails its tests: it never skips them."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
OURS = ("zoo", "tests", "conftest", "blocks", "kernels")


def skips_for_our_own(source: str) -> Iterator[str]:
    """Each place where a test is skipped because an import fails and the module is ours, or not named by a constant.

    Such places are `pytest.importorskip` and a `try` around an import whose handler skips or passes on.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("importorskip"):
            given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "modname")]
            if not all(isinstance(name, ast.Constant) and not is_ours(name.value) for name in given):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Try) and any(catches_imports(h) and skips_or_passes(h) for h in node.handlers):
            names = [name for inner in node.body for name in imported(inner)]
            yield from (f"line {node.lineno}: import of {name} in a try" for name in names if is_ours(name))


def skips_or_passes(handler: ast.ExceptHandler) -> bool:
    """Whether a handler goes on as if nothing had happened: one that raises, or prints the error, hides nothing."""
    text = ast.unparse(handler)
    return "raise" not in text and "print_exc" not in text


def catches_imports(handler: ast.ExceptHandler) -> bool:
    caught = "" if handler.type is None else ast.unparse(handler.type)
    return not caught or any(name in caught for name in ("ImportError", "ModuleNotFoundError", "Exception"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "zoo"


def is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def test_no_test_is_skipped_because_our_own_code_does_not_import():
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 50
    found = {path.relative_to(TESTS): list(skips_for_our_own(path.read_text(encoding="utf-8"))) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_search_finds_what_it_looks_for():
    assert len(list(skips_for_our_own("import pytest\nengine = pytest.importorskip('zoo.training.engine')"))) == 1
    assert len(list(skips_for_our_own("from pytest import importorskip\nimportorskip(modname='zoo.model')"))) == 1
    assert len(list(skips_for_our_own("importorskip(name)"))) == 1
    assert len(list(skips_for_our_own("try:\n    from zoo import model\nexcept ImportError:\n    model = None"))) == 1
    assert list(skips_for_our_own("importorskip('fla')\ntry:\n    import fla\nexcept ImportError:\n    fla = 0")) == []

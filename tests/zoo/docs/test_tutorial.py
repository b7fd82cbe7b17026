"""The tutorial: its examples run one after another as in a notebook, and the notebook holds the same cells."""

import json
import re
from pathlib import Path

import pytest
import torch

import zoo
from zoo.docs import notebook

TEXT = (Path(__file__).parents[3] / "docs" / notebook.PAGE).read_text(encoding="utf-8")


def test_the_notebook_has_the_text_and_the_examples_in_order():
    found = json.loads(notebook.as_notebook(TEXT))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    code = ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]
    assert code == [text.rstrip() for text in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)]
    assert len(code) >= 8
    assert found["cells"][0]["cell_type"] == "markdown"
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")


@pytest.mark.slow
def test_the_examples_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        names: dict = {}
        for kind, text in notebook.cells(TEXT):
            if kind == "code":
                exec(compile(text.replace('steps = "600ba"', 'steps = "8ba"'), "cell", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    assert isinstance(names["runs"][0], zoo.Run)
    assert names["full_run"].summary["batches"] == 8
    assert Path("tutorial.html").is_file()
    shown = capsys.readouterr().out
    assert "unknown key 'windw'" in shown
    assert "<Result mqar" in shown
    crossing = [row for row in names["before"].rows if row["group"] == "layers to cross the row"]
    assert {(row["full"], row["window"]) for row in crossing} == {(1, None)}

"""The worked example of docs/own_block.md: its files are installed as a package, and what the page promises holds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "own_block.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files of the page beside recipes/, the package installed into target/ without a network."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    options = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    _run(folder, "-m", "pip", "install", *options, "--target", "target", "./zoo-decay")
    return folder


def _run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": f"{folder / 'target'}:{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_the_files_it_speaks_of():
    package = {"pyproject.toml", "zoo_decay/__init__.py", "zoo_decay/module.py"}
    assert FILES.keys() == {*(f"zoo-decay/{name}" for name in package), "decay.yaml", "test_decay.py", "my_blocks.py"}


def test_the_commands_know_the_kinds(folder):
    assert "Share of the mean that a token keeps." in _run(folder, "-m", "zoo", "blocks", "decay")
    shown = json.loads(_run(folder, "-m", "zoo", "show", "decay.yaml", "--json"))
    assert [layer["kind"] for layer in shown["layers"]] == ["decay", "decay", "decay", "nearby", "full"] * 2
    assert "decay" in _run(folder, "-m", "zoo", "compare", "decay.yaml", "zoo:tiny/full", "--no-maps")


@pytest.mark.slow
def test_the_tests_of_the_page_pass(folder):
    _run(folder, "test_decay.py")


def test_a_page_is_generated_for_each_kind(folder):
    code = "from zoo.docs.kinds import kind_pages; import json; print(json.dumps(kind_pages()))"
    pages = json.loads(_run(folder, "-c", code))
    decay, nearby = pages["reference/blocks/decay.md"], pages["reference/blocks/nearby.md"]
    assert r"h_t = \lambda\, h_{t-1}" in decay
    assert "| allocated | $\\text{width}$ | 128 |" in decay
    assert "| window | $2 \\, H \\, (d_n + d_v)" in nearby


def test_a_recipe_can_name_the_module_that_registers_it(folder):
    recipe = folder / "by_plugin.yaml"
    recipe.write_text(f"plugins: [my_blocks]\n{FILES['decay.yaml']}")
    assert "decaying means" in _run(folder, "-m", "zoo", "show", str(recipe))


EXPORTED = """
import torch, transformers, zoo
from zoo.data.tokenizers import Bytes
from zoo.export.writing import export
from zoo.training.final_weights import export as finish_run
from zoo.runs.folder import RunFolder
from pathlib import Path

torch.set_num_threads(1)
recipe = zoo.load_recipe("decay.yaml", ["model.d_model=32", "model.n_layers=5", "model.layers=decay*3 nearby global"])
folder = RunFolder(Path("run"))
folder.path.mkdir()
folder.recipe.write_text(recipe.dump())
finish_run(folder, recipe, zoo.build_model(recipe).state_dict(), Bytes())
export("run", "exported")
theirs = transformers.AutoModelForCausalLM.from_pretrained("exported", trust_remote_code=True).eval()
ours = zoo.load("run")
prompts = [b"def main(", b"import os and", b"x"]
longest = max(map(len, prompts))
rows = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
with torch.no_grad():
    logits = theirs(rows, attention_mask=mask).logits
    for row, prompt in enumerate(prompts):
        alone = ours(torch.tensor([list(prompt)]))[0]
        torch.testing.assert_close(logits[row, longest - len(prompt):], alone, rtol=1e-4, atol=1e-4)
    options = dict(attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=256)
    for beams in (1, 4):
        cached = theirs.generate(rows, num_beams=beams, use_cache=True, **options)
        plain = theirs.generate(rows, num_beams=beams, use_cache=False, **options)
        assert torch.equal(cached, plain), beams
    settings = dict(max_tokens=12, temperature=0.0, tokenizer=Bytes())
    texts = zoo.generate(ours, [prompt.decode() for prompt in prompts], **settings)
    greedy = theirs.generate(rows, num_beams=1, **options)[:, longest:].tolist()
    assert [result.tokens for result in texts.results] == greedy
"""


@pytest.mark.slow
def test_the_block_passes_beam_search_left_padding_and_export(folder):
    _run(folder, "-c", EXPORTED)

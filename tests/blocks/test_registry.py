"""Names of kinds: looked up lazily, near misses named, other packages' kinds found."""

import subprocess
import sys

import pytest

from zoo.blocks import block_kinds, broken, build, config_class, register, registry
from zoo.blocks.registry import kinds

PLUGIN = '''
from typing import Literal
import torch
from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import Cost

class Identity(BlockConfig):
    """A block from elsewhere, off the grid."""
    kind: Literal["identity"] = "identity"

    def cost(self, d_model, seq_len, part=None):
        return Cost({}, {}, 0, 0)

    def build(self, d_model, part=None):
        return torch.nn.Identity()
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(name, entry points, source) -> a package on the path, as pip would leave it."""
    registry.MIXERS.forget_installed()
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, entry_points: str, source: str = PLUGIN) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[zoo.blocks]\n{entry_points}\n")

    yield install
    registry.MIXERS.forget_installed()


LINEAR = ["gated_linear", "lightning", "gated_deltanet", "kda", "mamba2"]


def test_the_zoo_has_its_kinds():
    assert {"attention", "full", "window", "chunked", "mla", "gla", "nsa", "ansa", *LINEAR} <= set(kinds())
    assert kinds()[0] == "attention"
    assert all(cls().kind == kind for kind, cls in block_kinds())


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown block kind 'asna'; known: attention, full.*Did you mean 'ansa'\?"):
        config_class("asna")


def test_a_kind_from_another_package(install):
    install("zoo_plugin_a", "identity = zoo_plugin_a:Identity")
    config = config_class("identity").model_validate({"kind": "identity"})
    assert kinds()[-1] == "identity"
    assert config.cost(8, 16).total_parameters == 0
    assert type(build(config, 8)).__name__ == "Identity"


def test_a_package_that_does_not_import_is_named(install):
    install("zoo_plugin_b", "broken = zoo_plugin_b:Nothing")
    with pytest.raises(ValueError, match=r"'broken' cannot be loaded from zoo_plugin_b:Nothing: .*no attribute"):
        config_class("broken")


def test_a_name_of_the_zoo_cannot_be_taken(install):
    with pytest.raises(ValueError, match=r"'full' is taken by zoo\.blocks\.kinds\.full:FullConfig; found mine:Full"):
        register("full", "mine:Full")
    install("zoo_plugin_c", "nsa = zoo_plugin_c:Identity\nidentity = zoo_plugin_c:Identity")
    why = "block kind 'nsa' is offered by zoo_plugin_c:Identity and by zoo.blocks.kinds.nsa:NSAConfig; uninstall one"
    assert broken() == {"nsa": why}
    assert config_class("nsa").__module__ == "zoo.blocks.kinds.nsa"
    assert [kind for kind, _ in block_kinds()] == [*registry.MIXERS.own, "identity"], "the rest works"


def test_a_name_offered_twice_is_refused_by_name(install):
    install("zoo_plugin_d", "identity = zoo_plugin_d:Identity")
    install("zoo_plugin_e", "identity = zoo_plugin_e:Identity")
    with pytest.raises(
        ValueError, match=r"'identity' is offered by zoo_plugin_\w:Identity and by zoo_plugin_\w:Identity"
    ):
        config_class("identity")
    assert list(broken()) == ["identity"]


@pytest.mark.parametrize(
    ("target", "source", "why"),
    [
        ("zoo_plugin_f:Identity", "1 / 0", "cannot be loaded from zoo_plugin_f:Identity: division by zero"),
        ("zoo_plugin_g:other", PLUGIN + "other = 3", "must be a subclass of zoo.blocks.config.BlockConfig"),
        ("zoo_plugin_h:Identity", PLUGIN, "must have the default kind 'odd'; found 'identity'"),
        ("zoo_plugin_i", PLUGIN, "cannot be loaded from zoo_plugin_i"),
    ],
)
def test_a_broken_plugin_is_named_and_leaves_the_rest(install, target, source, why):
    install(target.partition(":")[0], f"odd = {target}", source)
    assert why in broken()["odd"]
    assert broken()["odd"].startswith("block kind 'odd'")
    assert "odd" not in dict(block_kinds())
    assert "nsa" in dict(block_kinds())


def test_a_registered_kind_is_found(monkeypatch):
    monkeypatch.setattr(registry.MIXERS, "own", dict(registry.MIXERS.own))
    register("mine", "zoo.blocks.kinds.full:FullConfig")
    assert config_class("mine") is config_class("full")


def test_the_config_half_imports_no_torch():
    code = """
import sys
from zoo.blocks import block_kinds
for kind, cls in block_kinds():
    config = cls()
    for part in config.parts or (None,):
        config.cost(1024, 4096, part)
    config.problems(1000), cls.model_json_schema()
print([name for name in ("torch", "numpy", "composer") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

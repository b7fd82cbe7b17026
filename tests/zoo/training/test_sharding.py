"""When devices that share a model exchange parts of it."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

from zoo.errors import RecipeError
from zoo.recipe import load_recipe
from zoo.training.sharding import Exchange, parallelism


@pytest.mark.filterwarnings("ignore:FSDP2 Config/APIs are experimental")
@pytest.mark.parametrize("reshard", [True, False])
def test_composer_is_told_when_to_free_gathered_weights(recipe_file, reshard):
    settings = ["train.parallelism=fsdp2", *([] if reshard else ["train.reshard_after_forward=false"])]
    assert parallelism(load_recipe(recipe_file, settings).train)["fsdp"].reshard_after_forward is reshard


@pytest.mark.parametrize("setting", ["reshard_after_forward=false", "gradient_sync=batch"])
def test_what_is_not_sharded_is_not_exchanged_otherwise(recipe_file, setting):
    key, value = setting.split("=")
    with pytest.raises(RecipeError, match=f"{key}: {value} needs parallelism: fsdp2"):
        load_recipe(recipe_file, [f"train.{setting}"])


def test_settings_of_shards_are_not_ignored_where_nothing_is_sharded(recipe_file):
    with pytest.raises(RuntimeError, match="no child of the model is sharded"):
        Exchange(load_recipe(recipe_file, ["train.parallelism=fsdp2"]).train, nn.Sequential(nn.Linear(1, 1)), True)


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "gathers", "reductions"),
    [
        ((), 3 * 4, 3 * 2),  # for the forward pass and for the backward pass
        (("train.reshard_after_forward=false",), 2, 3 * 2),
        (("train.gradient_sync=batch",), 3 * 4, 2),
        (("train.reshard_after_forward=false", "train.gradient_sync=batch"), 2, 2),
    ],
)
def test_exchanges_of_a_batch_of_three_micro_batches(
    recipe_file, monkeypatch, one_process, settings, gathers, reductions
):
    """Of a layer and the model around it. A single process gathers nothing, but has whole weights at the same times."""
    torch.manual_seed(17)
    train = load_recipe(recipe_file, ["train.parallelism=fsdp2", *settings]).train
    decoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    plain, model = copy.deepcopy(decoder), nn.Sequential(decoder)
    for module in (decoder[0], decoder):
        fully_shard(module, reshard_after_forward=train.reshard_after_forward)
    counts = {"gather": 0, "reduce": 0}

    def count(owner, name: str, kind: str) -> None:
        call = getattr(owner, name)

        def counted(*arguments, **options):
            counts[kind] += 1
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    count(_fsdp_param_group.FSDPParamGroup, "_to_unsharded", "gather")
    count(_fsdp_param_group, "foreach_reduce", "reduce")
    exchange = Exchange(train, model, sharded=True)
    for batch in torch.randn(2, 3, 5, 4):
        counts.update(gather=0, reduce=0)
        for i, part in enumerate(batch):
            exchange.before(last=i == len(batch) - 1)
            for each in (model, plain):
                each(part).square().mean().backward()
        assert counts == {"gather": gathers, "reduce": reductions}
        for found, expected in zip(decoder.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found.grad.full_tensor(), expected.grad)
            found.grad = expected.grad = None

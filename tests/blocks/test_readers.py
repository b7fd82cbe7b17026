"""Each pattern of a block reads queries of its own, in one memory, so that one kernel adds up their gradients."""

import pytest
import torch

from zoo.blocks import config_class
from zoo.blocks.context import Context
from zoo.kernels import use_implementation

GLA = {"kind": "gla", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "kv_rank": 12, "rope_dim": 4}
GQA = {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
SPARSE = [{"kind": "compression"}, {"kind": "selection", "n_selected": 3}]
WINDOW = {"kind": "window", "window": 16}
CASES = {  # projection, patterns, key and value sets, tensors of the queries
    "compression and selection": (GLA, SPARSE, False, 2),
    "without a rotary part": (GLA | {"rope_dim": 0}, SPARSE, False, 2),
    "a latent of queries": (GLA | {"q_rank": 12}, SPARSE, False, 2),
    "three patterns": (GQA, [*SPARSE, WINDOW], True, 3),
    "one pattern": (GQA, [WINDOW], False, 1),
    "queries that a norm makes": (GQA | {"qk_norm": True}, [*SPARSE, WINDOW], True, 1),
}


def made(name):
    projection, patterns, separate, _ = CASES[name]
    config = config_class("attention")(projection=projection, patterns=patterns, separate_kv=separate)
    torch.manual_seed(17)
    return config.build(32).double()


def gradients(block, x):
    y = block(x, Context.for_tokens(*x.shape[:2]))
    return y, torch.autograd.grad(y.square().sum(), [x, *block.parameters()])


def thrice(module, arguments, result):
    queries, entries = result
    return queries._replace(q=queries.q * 3), entries


def changed_by_a_hook(block):
    block.projection.register_forward_hook(thrice)


def changed_by_a_subclass(block):
    class Changed(type(block.projection)):
        def forward(self, x, context):
            return thrice(self, (x, context), super().forward(x, context))

    block.projection.__class__ = Changed


@pytest.mark.parametrize("change", [changed_by_a_hook, changed_by_a_subclass])
@pytest.mark.parametrize("name", ["compression and selection", "three patterns"])
def test_all_patterns_read_queries_that_were_replaced(name, change):
    """The result is the same with gradients as without, where all patterns read one tensor."""
    block, x = made(name), torch.randn(1, 70, 32, dtype=torch.float64)
    context = Context.for_tokens(1, 70)
    before = block(x, context)
    change(block)
    with torch.no_grad():
        expected = block(x, context)
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(block(x, context), expected)


@pytest.mark.interp
@pytest.mark.slow
@pytest.mark.parametrize("name", ["compression and selection", "three patterns"])
def test_the_kernel_adds_the_gradients_of_all_patterns(name):
    block, x = made(name).float(), torch.randn(1, 40, 32, requires_grad=True)
    with use_implementation("triton"):
        y, found = gradients(block, x)
        block.projection.n_patterns = 1
        other, expected = gradients(block, x)
    assert torch.equal(y, other)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_shared_tensors(name):
    block, x = made(name), torch.randn(2, 70, 32, dtype=torch.float64, requires_grad=True)
    y, found = gradients(block, x)
    block.projection.n_patterns = 1
    other, expected = gradients(block, x)
    assert torch.equal(y, other)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", CASES)
def test_each_pattern_reads_its_own(name):
    """The memory is one; copies of the further tensors show who reads which."""
    block, x, read = made(name), torch.randn(1, 70, 32, dtype=torch.float64), []
    expected = CASES[name][3]

    def copied(module, arguments, result):
        queries, entries = result
        pairs = queries.each or ((queries.q, queries.rope),)
        assert len(pairs) == (expected if torch.is_grad_enabled() else 1)
        assert len({q.data_ptr() for q, _ in pairs}) == 1
        assert len({rope.data_ptr() for _, rope in pairs if rope is not None}) <= 1
        first, *others = pairs
        copies = [(q.clone(), None if rope is None else rope.clone()) for q, rope in others]
        return queries._replace(each=(first, *copies) if copies else ()), entries

    block.projection.register_forward_hook(copied)
    for pattern in block.patterns.values():
        pattern.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    block(x, Context.for_tokens(1, 70))
    assert len(read) == len(block.patterns)
    for part in ("q", "rope") if read[0].rope is not None else ("q",):
        assert len({getattr(queries, part).data_ptr() for queries in read}) == expected
    with torch.no_grad():
        block(x, Context.for_tokens(1, 70))
    assert len({queries.q.data_ptr() for queries in read[len(block.patterns) :]}) == 1

"""Queries and latents that stay in the product they come from: no copies, the same bits, hardly more memory."""

import pytest
import torch

from zoo.blocks import config_class
from zoo.blocks.context import Context, Step
from zoo.blocks.projections import latent
from zoo.kernels import use_implementation

pytestmark = pytest.mark.interp
D_MODEL, T, ROPE_DIM = 20, 38, 8
LATENT = {"kind": "gla", "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "kv_rank": 12, "rope_dim": ROPE_DIM}
SPARSE = [{"kind": "compression"}, {"kind": "selection", "n_selected": 3}]
WINDOW = [{"kind": "window", "window": 16}]
KEPT = {  # projection and patterns
    "window": (LATENT, WINDOW),
    "compression and selection": (LATENT, SPARSE),
    "latent heads": (LATENT | {"n_latent_heads": 2}, [SPARSE[0], *WINDOW]),
    "a latent of queries": (LATENT | {"q_rank": 6}, WINDOW),
    "without the norm of latents": (LATENT | {"latent_norm": False}, WINDOW),
    "several ways to read": (LATENT, [{"kind": "full"}, *WINDOW]),
}
COPIED = {
    "full attention joins both parts": (LATENT, [{"kind": "full"}]),
    "a temperature": (LATENT | {"position_temperature": {"scale": 0.1, "every": 16}}, WINDOW),
}


@pytest.fixture(autouse=True)
def kernels():
    with use_implementation("triton"):
        yield


@pytest.fixture
def copying(monkeypatch):
    """copying(): from now on the projection cuts its products into copies."""
    cut = latent.split_heads

    def copies(*arguments, in_place, **options):
        return cut(*arguments, **options)

    return lambda: monkeypatch.setattr(latent, "split_heads", copies)


def made(projection, patterns):
    torch.manual_seed(17)
    return config_class("attention")(projection=projection, patterns=patterns).build(D_MODEL)


def noise():
    return torch.randn(1, T, D_MODEL, generator=torch.Generator().manual_seed(5))


def watched(block, monkeypatch):
    """The products that the block cuts and the tensors that its patterns read, in lists that fill as it runs."""
    products, read, cut = [], [], latent.split_heads
    monkeypatch.setattr(
        latent, "split_heads", lambda y, *more, **options: products.append(y) or cut(y, *more, **options)
    )
    for pattern in block.patterns.values():
        pattern.register_forward_pre_hook(
            lambda module, arguments: read.extend(x for x in (arguments[0].q, arguments[0].rope) if x is not None)
        )
    return products, read


def test_copies_for_other_packages_are_not_kept_beside_the_product(monkeypatch):
    """Their patterns read contiguous copies, so the product would be kept in addition."""
    assert made(*KEPT["window"]).projection.patterns_keep_queries
    monkeypatch.setattr("zoo.blocks.base.is_own", lambda thing: False)
    assert not made(*KEPT["window"]).projection.patterns_keep_queries


def memory(x):
    return x.untyped_storage().data_ptr()


def gradients(block, x):
    y = block(x, Context.for_tokens(1, T))
    return [y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])]


def kept_bytes(block):
    """Of the memory that autograd keeps, without parameters and the input."""
    kept, x = {}, noise().requires_grad_()

    def pack(tensor):
        kept[memory(tensor)] = tensor  # which stays alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = block(x, Context.for_tokens(1, T))
    for given in (x, *block.parameters()):
        kept.pop(memory(given), None)
    assert y.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


SLOW = {"compression and selection": pytest.mark.slow}  # half a minute in the interpreter


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in KEPT])
def test_the_bits_are_those_of_copies(name, copying):
    block, x = made(*KEPT[name]), noise().requires_grad_()
    found = gradients(block, x)
    copying()
    for a, b in zip(found, gradients(block, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", KEPT)
def test_patterns_read_the_product(name, monkeypatch):
    block = made(*KEPT[name])
    products, read = watched(block, monkeypatch)
    block(noise(), Context.for_tokens(1, T))
    assert len(products) == (2 if "q_rank" in KEPT[name][0] else 1)
    assert len(read) == 2 * len(block.patterns)
    assert {memory(x) for x in read} == {memory(products[-1])}


def replace_forward(module, note):
    forward = module.forward

    def noted(x):
        y = forward(x)
        note(module, x, y)
        return y

    module.forward = noted


OBSERVERS = {
    "a hook": lambda module, note: module.register_forward_hook(note),
    "a global hook": lambda module, note: torch.nn.modules.module.register_module_forward_hook(
        lambda other, arguments, y: note(other, arguments, y) if other is module else None
    ),
    "another forward": replace_forward,
}


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", ["window", "a latent of queries"])
def test_who_sees_the_product_keeps_it(name, gradients, observer):
    """Unseen, it would be overwritten."""
    block, seen = made(*KEPT[name]), []
    module = block.projection.query if "q_rank" in KEPT[name][0] else block.projection.input
    handle = OBSERVERS[observer](module, lambda module, arguments, y: seen.append((y, y.clone())))
    try:
        with torch.set_grad_enabled(gradients):
            block(noise(), Context.for_tokens(1, T))
    finally:
        if handle is not None:
            handle.remove()
    ((found, expected),) = seen
    assert torch.equal(found, expected)


def test_a_map_that_reads_its_result_again_is_not_overwritten():
    class Bounded(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).tanh()

    block, x = made(*KEPT["window"]), noise().requires_grad_()
    block.projection.input.__class__ = Bounded
    found = gradients(block, x)
    with use_implementation("reference"):
        expected = gradients(block, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["window", "a latent of queries"])
def test_patterns_of_other_packages_read_contiguous_queries(name):
    block, found = made(*KEPT[name]), []
    (pattern,) = block.patterns.values()

    class Own(type(pattern)):
        def forward(self, queries, source, context, results):
            found.append((queries.q.is_contiguous(), queries.rope.is_contiguous()))
            return super().forward(queries, source, context, results)

        def cached(self, queries, *more):
            found.append((queries.q.is_contiguous(), queries.rope.is_contiguous()))
            return super().cached(queries, *more)

    pattern.__class__ = Own
    cache, start = block.new_cache(1, T), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        block(noise(), Context.for_tokens(1, T))
        for lo, hi in ((0, 30), (30, T)):
            block(noise()[:, lo:hi], Step.after(start + lo, hi - lo, None, lo == 0), cache)
    assert found == [(True, True)] * 3


@pytest.mark.parametrize("name", COPIED)
def test_patterns_read_copies_where_they_keep_others(name, monkeypatch):
    block = made(*COPIED[name])
    products, read = watched(block, monkeypatch)
    block(noise(), Context.for_tokens(1, T))
    assert memory(products[0]) not in {memory(x) for x in read}
    with torch.no_grad():
        block(noise(), Context.for_tokens(1, T))
    assert (memory(products[1]) in {memory(x) for x in read}) == (name != "a temperature")


@pytest.mark.parametrize("name", [*KEPT, *COPIED])
def test_memory_grows_by_the_rotary_key_at_most(name, copying):
    """The product holds it as it is before its rotation."""
    block = made(*(KEPT | COPIED)[name])
    found = kept_bytes(block)
    copying()
    assert found - kept_bytes(block) == (4 * T * ROPE_DIM if name in KEPT else 0)


@pytest.mark.parametrize("name", [*KEPT, *COPIED])
def test_tokens_of_a_cache(name):
    block = made(*(KEPT | COPIED)[name])
    x = noise()
    with torch.no_grad():
        expected = block(x, Context.for_tokens(1, T))
        cache, start, found = block.new_cache(1, T), torch.zeros(1, dtype=torch.int64), []
        for lo, hi in ((0, 35), (35, 37), (37, 38)):
            step = Step.after(start + lo, hi - lo, None, lo == 0)
            found.append(block(x[:, lo:hi], step, cache))
    torch.testing.assert_close(torch.cat(found, 1), expected)

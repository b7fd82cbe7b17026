"""What holds for every block, whatever its projection and patterns."""

import pytest
import torch

from zoo.blocks import build, config_class
from zoo.blocks.base import Context
from zoo.kernels import Documents

LENGTHS = (5, 1, 17, 9, 8)  # documents of one row, 40 tokens; none but the last begins on a block of the row's grid


@pytest.fixture
def packed() -> Documents:
    starts = torch.zeros(1, sum(LENGTHS), dtype=torch.bool)
    starts[0, [0, *torch.tensor(LENGTHS).cumsum(0)[:-1].tolist()]] = True
    return Documents.from_starts(starts)


def test_the_past_does_not_see_the_future(case, make, noise):
    block, context = make(*case), Context.for_tokens(2, 40)
    x, other = noise(2, 40, 24), noise(2, 40, 24, seed=1)
    y = block(x, context)
    for t in (0, 3, 7, 16, 30, 38):
        changed = block(torch.cat((x[:, : t + 1], other[:, t + 1 :]), 1), context)
        torch.testing.assert_close(changed[:, : t + 1], y[:, : t + 1], rtol=0, atol=1e-12)
        assert (changed[:, t + 1 :] - y[:, t + 1 :]).abs().max() > 1e-6


def test_a_packed_document_is_computed_as_if_alone(case, make, noise, packed):
    block, x = make(*case), noise(1, sum(LENGTHS), 24)
    y = block(x, Context.for_tokens(*x.shape[:2], documents=packed))
    for part_x, part_y in zip(x.split(LENGTHS, 1), y.split(LENGTHS, 1), strict=True):
        alone = block(part_x, Context.for_tokens(*part_x.shape[:2]))
        torch.testing.assert_close(part_y, alone, rtol=0, atol=1e-12)


def test_no_gradient_crosses_documents(case, make, noise, packed):
    block, x = make(*case), noise(1, sum(LENGTHS), 24).requires_grad_()
    y = block(x, Context.for_tokens(*x.shape[:2], documents=packed))
    y[:, 6:23].square().sum().backward()  # the third document
    assert x.grad[:, 6:23].abs().amax(-1).min() > 0
    assert x.grad[:, :6].abs().max() == 0
    assert x.grad[:, 23:].abs().max() == 0


@pytest.mark.parametrize("seq_len", [1, 3, 5])
def test_short_rows_and_rows_of_padding_stay_finite(case, make, noise, seq_len):
    block = make(*case)
    x = torch.cat((noise(1, seq_len, 24), torch.zeros(1, seq_len, 24, dtype=torch.float64))).requires_grad_()
    y = block(x, Context.for_tokens(2, seq_len))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in block.parameters())
    assert x.grad.isfinite().all()


def test_gradients_match_differences(case, make, noise):
    """Over the input and every parameter; 20 tokens reach a second choice of blocks."""
    block, context = make(*case), Context.for_tokens(1, 20)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x, context))

    x = noise(1, 20, 24).requires_grad_()
    torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True, atol=1e-5)


def test_a_block_made_without_memory_is_whole_once_its_weights_are_loaded(case, make, noise):
    """As models are loaded: made on the meta device, their tensors then assigned."""
    fields, part = case
    block = make(*case)
    with torch.device("meta"):
        loaded = build(config_class(fields["kind"]).model_validate(fields), 24, part)
    loaded.load_state_dict(block.state_dict(), assign=True)
    x, context = noise(1, 20, 24), Context.for_tokens(1, 20)
    assert torch.equal(loaded(x, context), block(x, context))


def test_every_parameter_is_used(case, make, noise):
    block = make(*case)
    block(noise(1, 40, 24), Context.for_tokens(1, 40)).square().sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_float32_and_autocast_follow_float64(case, make, noise):
    x = noise(1, 40, 24)
    block = make(*case)
    expected = block(x, Context.for_tokens(1, 40))
    single = block.float()
    context = Context.for_tokens(1, 40)
    torch.testing.assert_close(single(x.float(), context).double(), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = single(x.float(), context)
    assert half.dtype == torch.bfloat16
    chooses = any(pattern.kind in ("selection", "moba") for pattern in getattr(block.config, "patterns", ()))
    limit = 0.2 if chooses else 0.02  # a choice of blocks may turn over in bf16
    assert (half.double() - expected).norm() < limit * expected.norm()


def test_tables_are_made_once_for_all_layers(make, noise):
    fields = {"kind": "full", "n_heads": 4}
    context = Context.for_tokens(1, 8)
    make(fields)(noise(1, 8, 24), context)
    first = dict(context._tables)
    make(fields)(noise(1, 8, 24), context)
    assert len(first) == 1
    assert context._tables == first


def test_context_and_input_must_agree(make, noise, packed):
    with pytest.raises(ValueError, match=r"found 8, the context is for 9"):
        make({"kind": "full", "n_heads": 4})(noise(1, 8, 24), Context.for_tokens(1, 9))
    with pytest.raises(ValueError, match=r"documents must be for shape \[2, 40\]; found \[1, 40\]"):
        Context.for_tokens(2, 40, documents=packed)

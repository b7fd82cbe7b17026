"""Which implementation serves a call, how that can be steered, and what is said about it."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo import kernels
from zoo.kernels import Documents, dispatch, use_implementation
from zoo.kernels.full import sdpa


@pytest.mark.slow
def test_import_is_lazy():
    """`import zoo.kernels` costs nothing; a call imports torch, and neither the zoo's other packages nor pydantic."""
    code = """
import sys, zoo.kernels
assert 'torch' not in sys.modules
import torch
before = set(sys.modules)
q = torch.ones(1, 4, 2, 4)
zoo.kernels.window_attention(q, q, q, window=2)
new = {name.split('.')[0] for name in set(sys.modules) - before}
assert not new & {'pydantic', 'composer', 'streaming', 'triton', 'yaml', 'rich'}, new
assert 'zoo.blocks' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_public_names_resolve():
    for name in kernels.__all__:
        assert callable(getattr(kernels, name))
    with pytest.raises(AttributeError, match="no attribute 'flash_attention'"):
        kernels.flash_attention  # noqa: B018


@pytest.fixture
def operation(monkeypatch):
    """An operation of this test with a fast implementation for up to two elements, and a slow one."""
    monkeypatch.setitem(sys.modules, "toy", type("toy", (), {"fast": lambda x: x + 1, "slow": lambda x: x + 2}))
    rows = (
        dispatch.Implementation("fast", "toy:fast", lambda x: "x is longer than 2" if x.numel() > 2 else None),
        dispatch.Implementation("slow", "toy:slow"),
    )
    monkeypatch.setitem(dispatch.dispatcher.registered, "toy", rows)
    monkeypatch.setattr(dispatch.dispatcher, "told", set())
    monkeypatch.setattr(dispatch.dispatcher, "last", {})
    monkeypatch.delenv("ZOO_KERNELS", raising=False)


short, long = torch.zeros(2), torch.zeros(3)


def test_auto_takes_the_first_that_can_serve_the_call(operation):
    assert dispatch.choose("toy", "auto", short).impl == "fast"
    assert dispatch.choose("toy", "auto", long) == dispatch.Choice("slow", "not fast: x is longer than 2", instead=True)
    assert dispatch.call("toy", "auto", long).tolist() == [2, 2, 2]


def test_a_named_implementation_works_or_raises(operation):
    assert dispatch.call("toy", "slow", short).tolist() == [2, 2]
    with pytest.raises(
        ValueError, match=r"toy: 'fast' \(asked for by impl=\) cannot serve this call: x is longer than 2"
    ):
        dispatch.call("toy", "fast", long)
    with pytest.raises(ValueError, match="toy: unknown implementation 'triton'; known: auto, fast, slow"):
        dispatch.call("toy", "triton", short)


def test_environment_takes_the_place_of_auto(operation, monkeypatch):
    monkeypatch.setenv("ZOO_KERNELS", "slow")
    assert dispatch.choose("toy", "auto", short) == dispatch.Choice("slow", "asked for by ZOO_KERNELS", asked=True)
    assert dispatch.choose("toy", "fast", short).impl == "fast"
    monkeypatch.setenv("ZOO_KERNELS", "slwo")
    with pytest.raises(ValueError, match="unknown implementation 'slwo'"):
        dispatch.choose("toy", "auto", short)


def test_use_implementation_as_context_and_as_setting(operation, monkeypatch):
    monkeypatch.setenv("ZOO_KERNELS", "fast")
    monkeypatch.setattr(dispatch.dispatcher, "forced", None)
    with use_implementation("slow"):
        assert dispatch.choose("toy", "auto", short).impl == "slow"
        with use_implementation("auto"):
            assert dispatch.choose("toy", "auto", short).impl == "fast"
        assert dispatch.choose("toy", "auto", short).impl == "slow"
    assert dispatch.choose("toy", "auto", short).impl == "fast"
    use_implementation("slow")
    assert dispatch.choose("toy", "auto", short).impl == "slow"


def test_auto_says_once_what_it_chose(operation, caplog):
    with caplog.at_level(logging.INFO, "zoo.kernels"):
        for x in (short, short, long, short, long):
            dispatch.call("toy", "auto", x)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["toy runs as fast (the best there is)", "toy runs as slow (not fast: x is longer than 2)"]


def test_an_implementation_that_does_not_fit_the_gpu_is_left_alone(operation, monkeypatch, caplog):
    """One call finds out; `auto` goes on with the next implementation, a named one raises."""
    out_of_resources = type("OutOfResources", (Exception,), {})

    def fails(x):
        raise out_of_resources("out of resource: shared memory")

    monkeypatch.setattr(sys.modules["toy"], "fast", fails)
    monkeypatch.setattr(dispatch.dispatcher, "failed", {})
    with pytest.raises(out_of_resources, match="shared memory"):
        dispatch.call("toy", "fast", short)
    assert dispatch.call("toy", "auto", short).tolist() == [2, 2]
    assert "too little for it (out of resource" in dispatch.choose("toy", "auto", short).why


def test_other_errors_pass_through(operation, monkeypatch):
    def fails(x):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(sys.modules["toy"], "fast", fails)
    with pytest.raises(RuntimeError, match="a mistake"):
        dispatch.call("toy", "auto", short)


def test_no_implementation(operation, monkeypatch):
    monkeypatch.setitem(dispatch.dispatcher.registered, "toy", dispatch.dispatcher.registered["toy"][:1])
    with pytest.raises(ValueError, match="toy: no implementation serves this call: not fast: x is longer than 2"):
        dispatch.call("toy", "auto", long)


def test_full_attention_leaves_documents_to_another_than_sdpa(randn, monkeypatch):
    monkeypatch.delenv("ZOO_KERNELS", raising=False)
    q = randn(1, 4, 2, 4)
    documents = Documents.from_starts(torch.ones(1, 4, dtype=torch.bool))
    kernels.full_attention(q, q, q, documents=documents)
    assert "it knows no packed documents" in dispatch.explain()
    with pytest.raises(ValueError, match=r"'sdpa' .* cannot serve this call: it knows no packed documents"):
        kernels.full_attention(q, q, q, documents=documents, impl="sdpa")


def test_explain_lists_every_operation():
    table = dispatch.explain()
    assert all(op in table for op in dispatch.OPERATIONS)
    with use_implementation("reference"):
        assert "auto means 'reference', by use_implementation()" in dispatch.explain()


def test_auto_never_takes_tritons_interpreter(randn, monkeypatch):
    """TRITON_INTERPRET=1 lets a named kernel run on the CPU, for tests; `auto` stays with the reference."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("ZOO_KERNELS", raising=False)
    row = dispatch.Implementation("triton", "nowhere:at_all", dispatch.why_not_triton)
    rows = row, dispatch.Implementation("reference", "nowhere:either")
    monkeypatch.setitem(dispatch.dispatcher.registered, "toy", rows)
    assert dispatch.choose("toy", "auto", short).impl == "reference"


def test_explain_of_a_function(operation, randn):
    q = randn(1, 4, 2, 4)
    table = dispatch.explain(lambda: kernels.window_attention(q, q, q, window=2))
    assert table.startswith("window_attention           reference")
    assert dispatch.plan(lambda: None) == []


def test_the_examples_of_the_page_run():
    page = (Path(__file__).parents[2] / "docs/kernels.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        exec(compile(example, "docs/kernels.md", "exec"), {})


def test_an_amd_gpu_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(dispatch.dispatcher, "unfit", {})
    assert dispatch._unfit(torch.device("cuda")) == "this is an AMD GPU, and the kernels are for NVIDIA's"
    assert dispatch._unfit(torch.device("cpu")) is None


def test_questions_to_the_device_are_constants_of_a_compiled_graph(monkeypatch):
    """cuDNN's presence is no question that torch.compile can trace: on a GPU it broke the graph of whole rows."""
    torch._dynamo.reset()
    sdpa._ask_for_cudnn.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda")

    def ask(x):
        return x + sdpa._has_cudnn(gpu) + 2 * dispatch.has_capability(gpu, (9, 0))

    x = torch.ones(2)
    assert torch.compile(ask, fullgraph=True, backend="eager")(x).tolist() == ask(x).tolist()
    sdpa._ask_for_cudnn.cache_clear()

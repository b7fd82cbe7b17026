"""Bits per byte: the scored targets' nats over the scored targets' bytes."""

import math

import numpy as np
import pytest
import torch

import zoo
from zoo.data import loader, prepare_for
from zoo.training import composer_model, train

pytestmark = pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")
IGNORED = composer_model.IGNORED


def test_ignored_places_count_neither_as_loss_nor_as_bytes():
    metric = composer_model.BitsPerByte(np.array([1.0, 3.0, 5.0]))
    metric.update(torch.tensor(2.0), torch.tensor([[0, 1, IGNORED], [IGNORED, IGNORED, 2]]))
    metric.update(torch.tensor(1.0), torch.tensor([[1, IGNORED]]))
    assert float(metric.compute()) == pytest.approx(3.0 / math.log(2) / 12)
    assert metric.token_bytes.dtype == torch.float64
    assert "token_bytes" not in metric.state_dict()


@pytest.mark.parametrize("document_mask", ["true", "false"])
def test_a_run_divides_by_the_bytes_of_the_tokens_it_scored(recipe, tmp_path, document_mask):
    settings = ["model.vocab_size=300", "data.tokenizer={kind: bpe, vocab_size: 300}", "train.duration=2ba"]
    settings += [f"model.document_mask={document_mask}", "eval.batches=1"]
    summary = train(recipe(*settings), tmp_path / "run")
    model, tokenizer = zoo.load(tmp_path / "run"), zoo.load_tokenizer(tmp_path / "run")
    spec = loader(prepare_for(recipe(*settings)), "validation", batch_size=4, shuffle=False, seed=3)
    batch = next(iter(spec.dataloader))
    with torch.no_grad():
        nats = model.loss(batch["input_ids"], batch["labels"], batch["document_starts"], reduction="sum")
    scored = batch["labels"][batch["labels"] != IGNORED].tolist()
    n_ends = scored.count(tokenizer.end_of_document)
    n_bytes = sum(len(tokenizer.decode([number]).encode()) for number in scored) + n_ends
    assert summary.bits_per_byte_after == pytest.approx(float(nats) / math.log(2) / n_bytes, rel=1e-5)
    spec.dataloader.dataset.close()

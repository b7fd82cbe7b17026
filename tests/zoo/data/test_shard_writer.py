import json
import subprocess
import sys

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.format.mds.encodings import is_mds_encoding

from zoo.data import shard_writer
from zoo.data.mds_index import ENCODINGS, NUMBERS
from zoo.data.shard_writer import ShardWriter


def rows(n: int, kind: str, longest: int) -> list[dict]:
    rng = np.random.default_rng(3)
    lengths = [1, 255, 256, *rng.integers(1, longest, n)]
    return [
        {
            "tokens": rng.integers(0, 60_000, length).astype(kind),
            "starts": rng.integers(0, 9, rng.integers(1, 5)).astype(np.uint32),
        }
        for length in lengths
    ]


@pytest.mark.parametrize("limit", [3000, 1 << 16, 1 << 26])
@pytest.mark.parametrize(("kind", "n", "longest"), [("uint16", 0, 9), ("uint32", 40, 300), ("uint16", 5, 70_000)])
def test_files_are_those_of_streaming(tmp_path, monkeypatch, limit, kind, n, longest):
    if limit < 10_000 and longest > limit:
        limit = 1 << 19
    monkeypatch.setattr(shard_writer, "LIMIT_BYTES", limit)
    columns = {"tokens": f"ndarray:{kind}", "starts": "ndarray:uint32"}
    ours = ShardWriter(tmp_path / "ours", columns)
    settings = {"compression": "zstd", "hashes": ["xxh64"], "size_limit": limit}
    with MDSWriter(out=str(tmp_path / "theirs"), columns=columns, **settings) as theirs:
        for row in rows(n, kind, longest):
            ours.write(row)
            theirs.write(row)
    ours.finish()
    found = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert len(found) > 1


def test_no_rows(tmp_path):
    ShardWriter(tmp_path / "ours", {"tokens": "ndarray:uint16"}).finish()
    with MDSWriter(out=str(tmp_path / "theirs"), columns={"tokens": "ndarray:uint16"}):
        pass
    assert (tmp_path / "ours/index.json").read_bytes() == (tmp_path / "theirs/index.json").read_bytes()


@pytest.mark.parametrize("values", [np.zeros(0, np.uint16), np.zeros(3, np.int64), np.zeros((2, 2), np.uint16)])
def test_an_array_of_another_kind_is_refused(tmp_path, values):
    with pytest.raises(ValueError, match="must be a row of uint16"):
        ShardWriter(tmp_path / "a", {"tokens": "ndarray:uint16"}).write({"tokens": values})


def test_the_prepare_command_imports_neither_torch_nor_streaming(tmp_path):
    (tmp_path / "a.txt").write_text("some words " * 100)
    recipe = {
        "name": "r",
        "model": {"d_model": 16, "vocab_size": 300, "max_seq_len": 32, "ffn": {"kind": "swiglu", "d_ff": 32},
                  "blocks": {"full": {"kind": "full", "n_heads": 2}}, "layers": "full"},
        "data": {"source": {"kind": "text", "paths": ["a.txt"]}, "tokenizer": {"kind": "bpe", "vocab_size": 300},
                 "validation_fraction": 0, "cache_dir": "cache"},
        "train": {"duration": "1ba", "batch_size": 1},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    code = (
        "import sys; from zoo.cli import run\n"
        "assert run(['data', 'prepare', 'r.yaml']) == 0\n"
        "assert not {'torch', 'streaming', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("encoding", [*ENCODINGS, *(f"ndarray:{kind}" for kind in NUMBERS)])
def test_what_is_known_without_streaming_is_known_to_it(encoding):
    assert is_mds_encoding(encoding)

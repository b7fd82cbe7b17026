"""`zoo bench eval`: its tables, and the zoo beside lm-evaluation-harness on the same rows."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from zoo import cli
from zoo.bench import evaluation

MACHINE = {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "python": "3.12", "date": "2026-11-30"}
OURS = [
    {"task": "piqa", "number": 0, "rows": 1838, "seconds": 2.0, "peak_bytes": 2**30, "machine": MACHINE},
    {"task": "copy", "number": 1, "rows": 100, "seconds": 7.0, "peak_bytes": 2**31, "machine": MACHINE},
]


def measured(monkeypatch, tmp_path, theirs, *, options=(2, 1), ours=(-1.0, -2.0, -3.0), their_logs=(-2.5, -2.0, -3.0)):
    """The report of processes that say these lines."""
    monkeypatch.setattr(evaluation, "_lines", lambda arguments, say: lines(arguments))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    file = tmp_path / "report.json"

    def lines(arguments):
        if arguments[0] == "zoo":
            folder = Path(arguments[2])
            (folder / "0.json").write_text(json.dumps({"task": "piqa", "pairs": [], "options": options}))
            np.save(folder / "0.zoo.npy", ours)
            np.save(folder / "0.hflm.npy", their_logs)
            return [dict(row) for row in OURS]
        return theirs

    assert cli.run(["bench", "eval", "runs/a", "--tasks", "piqa,copy", "--peers", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_the_table_compares_what_both_did(monkeypatch, capsys, tmp_path):
    theirs = [{"task": "piqa", "number": 0, "rows": 1838, "seconds": 5.0, "peak_bytes": 2**32}]
    report = measured(monkeypatch, tmp_path, theirs)
    out = capsys.readouterr().out
    assert "One NVIDIA H200, torch 2.11, triton 3.6, python 3.12, 2026-11-30." in out
    assert "    zoo bench eval runs/a --tasks piqa,copy --peers --batch-size 64\n" in out
    assert "| piqa | 1,838 | 2.00 | 5.00 | 2.50 | 50.0% | 1.5 |" in out
    assert "| copy | 100 | 7.00 | | | | |" in out
    assert "| all that both did | 1,838 | 2.00 | 5.00 | 2.50 | | |" in out
    assert "Peak memory, GiB: zoo 2.0, HFLM 4.0." in out
    assert report["rows"][0]["peer"]["seconds"] == 5.0


def test_a_peer_that_fails_leaves_its_reason(monkeypatch, capsys, tmp_path):
    report = measured(monkeypatch, tmp_path, [{"error": "no lm-eval"}])
    assert report["failed"] == "no lm-eval"
    out = capsys.readouterr().out
    assert "| piqa | 1,838 | 2.00 | 1.0 |" in out
    assert out.endswith("HFLM failed: no lm-eval\n")


def test_a_peer_without_a_text_to_score_is_not_started(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        evaluation, "_lines", lambda arguments, say: [dict(OURS[1])] if arguments[0] == "zoo" else 1 / 0
    )
    (tmp_path / "run").mkdir()
    assert cli.run(["bench", "eval", str(tmp_path / "run"), "--tasks", "copy", "--peers"]) == 0
    assert capsys.readouterr().out.endswith("HFLM failed: none of these tasks is scored by the likelihood of texts\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "bench eval: nowhere: no such folder"),
        (["nowhere", "--tasks", "hellaswagg"], "Did you mean 'hellaswag'?"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    assert cli.run(["bench", "eval", *arguments]) != 0
    found = capsys.readouterr().err
    assert said in found
    assert "Traceback" not in found
    assert found.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra eval")
def test_both_are_timed_on_the_same_rows(tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "report.json"
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    settings = ["model.d_model=64", "model.ffn.d_ff=32", "model.max_seq_len=1024", "eval.batches=1"]
    settings += ["train.duration=1ba", "train.schedule.warmup=0ba", "train.batch_size=1", "train.workers=0"]
    settings += [f"data.source={{kind: text, paths: [{tmp_path}/text.txt]}}", f"data.cache_dir={tmp_path}/cache"]
    assert cli.run(["train", "zoo:tiny/ansa", "--run-dir", str(run), *(f"--set={one}" for one in settings)]) == 0
    tasks = "arc_easy,{task: niah_single_1, lengths: [1024], generate: false}"
    command = ["bench", "eval", str(run), "--tasks", tasks, "--rows", "3", "--peers", "--json", str(file)]
    assert cli.run(command) == 0
    both, alone = json.loads(file.read_text())["rows"]
    assert (both["rows"], alone["rows"]) == (3, 3)
    assert both["seconds"] > 0
    assert both["peer"]["seconds"] > 0
    assert both["largest_difference"] < 1e-3  # the same tokens in float32
    assert both["same_answer"] == 1.0
    assert "peer" not in alone
    assert "| all that both did | 3 |" in capsys.readouterr().out

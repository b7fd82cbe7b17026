"""EleutherAI's lm-evaluation-harness: its tasks on any `Subject`, in process, through its own interface of a model.

Import this module only where the package lm-eval is installed; `run_harness` says how to install it.
"""

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from zoo.evaluation.asking import Query, ask
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.memory import Budget
from zoo.evaluation.results import Result, ResultFile
from zoo.evaluation.run import model_facts
from zoo.evaluation.subject import Subject
from zoo.extras import install_command

PREFIX = "lm-eval:"  # of the labels of its tasks in eval.json
VERSION = 1  # of the adapter; the version of lm-eval's task is among the settings
MAX_NEW_TOKENS = 256  # where a task states none, as HFLM

if find_spec("lm_eval") is None:
    raise EvaluationError(f"--harness: the package lm-eval is not installed; to install it: {install_command('eval')}")

from lm_eval import simple_evaluate, utils  # noqa: E402 - after the message that says how to get it
from lm_eval.api.model import TemplateLM  # noqa: E402


class HarnessModel(TemplateLM):
    """A `Subject` as lm-eval sees a model: log-likelihoods, rolling log-likelihoods, greedy generation."""

    def __init__(self, subject: Subject, say: Callable[[str], object] = warnings.warn):
        super().__init__()
        if subject.tokenizer is None:
            raise EvaluationError(f"--harness: {subject.name} reads plain numbers and has no tokenizer")
        self.subject, self.text, self._say = subject, subject.tokenizer, say
        self._known: dict[str, list[int]] = {}  # tokens of the texts of the requests at hand
        self.batch_size = 1  # for its reports; batches are ours

    @property
    def eot_token_id(self) -> int:
        return self.text.end_of_document

    @property
    def prefix_token_id(self) -> int:
        if self.subject.start is None:
            raise EvaluationError(
                f"--harness: the tokenizer of {self.subject.name} names no token for an empty context"
            )
        return self.subject.start

    @property
    def max_length(self) -> int:
        return self.subject.max_len

    @property
    def tokenizer_name(self) -> str:
        return self.text.identity

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        found = self._known.get(string)
        return self.subject.encode(string) if found is None else list(found)

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-eval's, which encodes the texts one by one; here they are encoded together before."""
        pairs = [request.args for request in requests]
        texts = dict.fromkeys(text for context, rest in pairs for text in (context.rstrip(), context + rest))
        self._known = dict(zip(texts, self.subject.encode_each(list(texts)), strict=True))
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self._known = {}

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        queries = []
        for _, context, continuation in requests:
            tokens = [*context, *continuation][:-1][-self.max_length :]
            places = range(len(tokens) - len(continuation), len(tokens))
            if places.start < 0:
                limit = f"and the model takes {self.max_length}"
                raise EvaluationError(f"--harness: a continuation has {len(continuation)} tokens, {limit}")
            queries.append(Query(tuple(tokens), tuple(places), tuple(continuation)))
        replies = ask(self.subject, queries, budget=Budget.of(self.subject, self._say))
        return [
            (float(reply.loglikelihood.sum()), bool((reply.likeliest == np.asarray(query.labels)).all()))
            for query, reply in zip(queries, replies, strict=True)
        ]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            made = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            found = [(None, *utils.make_disjoint_window(window)) for window in made]
            windows += found
            counts.append(len(found))
        logs = iter(self._loglikelihood_tokens(windows))
        return [sum(next(logs)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        if settings.get("do_sample", False) and settings.get("temperature", 0.0) != 0.0:
            raise EvaluationError("--harness: the task samples, and this model is evaluated greedily only")
        most = int(settings.get("max_gen_toks", MAX_NEW_TOKENS))
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else until
        if most >= self.max_length:
            limit = f"and the model takes {self.max_length} with the prompt"
            raise EvaluationError(f"--harness: the task generates {most} tokens, {limit}")
        prompt = self.tok_encode(context)[-(self.max_length - most) :]
        text = self.text.decode(self.subject.greedy([prompt], most)[0])
        for stop in filter(None, until):
            text = text.split(stop)[0]
        return text


def run_harness(
    subject: Subject,
    names: str,
    kept: ResultFile | None = None,
    *,
    rows: int | None = None,
    lengths: Sequence[int] | None = None,
    again: bool = False,
    say: Callable[[str], object] = warnings.warn,
) -> list[Result]:
    """Score a subject on tasks of lm-eval.  names: separated by commas.  rows: the first so many of each task.

    lengths: tokens of a prompt, for tasks that make their rows (ruler, niah_single_1 ...); default the model's context.
    say: told if memory runs out.
    Results are kept under the label lm-eval:NAME. Raises EvaluationError for an unknown task, and if its data cannot
    be had: lm-eval loads them from the Hub.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise EvaluationError("--harness: name at least one task, e.g. --harness hellaswag,lambada_openai")
    for length in lengths or ():
        if length > subject.max_len:
            raise EvaluationError(f"--seq-len: {length} tokens, and the model takes {subject.max_len}")
    model, results = HarnessModel(subject, say), []
    given = {"rows": rows, "lengths": list(lengths) if lengths else None}
    settings = ", ".join(f"{key}={value}" for key, value in given.items() if value)
    for name in wanted:
        label = f"{PREFIX}{name}" + (f"({settings})" if settings else "")
        found = None if again or kept is None else kept.find_label(label, model_facts(subject))
        if found is None:
            found = _run(model, name, label, rows, lengths)
            if kept is not None:
                kept.add(found)
        results.append(found)
    return results


def _run(model: HarnessModel, name: str, label: str, rows: int | None, lengths: Sequence[int] | None) -> Result:
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), _row_making(model.subject, lengths) as metadata:
            found = simple_evaluate(
                model=model, tasks=[name], limit=rows, log_samples=False, bootstrap_iters=0, metadata=metadata
            )
    except EvaluationError:
        raise
    except KeyError as error:
        raise EvaluationError(f"--harness: lm-eval knows no task {name!r}; lm_eval ls tasks lists them") from error
    except Exception as error:  # data that cannot be loaded raise whatever the library under them does
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "tokenizer" in reason and not hasattr(model.text, "save"):
            reason = f"it makes its rows with a tokenizer of transformers, and {model.subject.name} reads bytes"
        raise EvaluationError(f"--harness: task {name} of lm-eval failed: {reason}") from error
    return as_result(found, name, label, model, time.perf_counter() - start)


@contextlib.contextmanager
def _row_making(subject: Subject, lengths: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    """What lm-eval's tasks that make their rows want to know: a folder with the tokenizer, and the lengths.

    The folder is a copy: lm-eval would run code that a tokenizer's folder brings along.
    """
    metadata: dict[str, Any] = {"max_seq_lengths": list(lengths or [subject.max_len])}
    with tempfile.TemporaryDirectory() as folder:
        if save := getattr(subject.tokenizer, "save", None):  # not that of bytes: lm-eval then says that it needs one
            save(Path(folder))
            metadata["tokenizer"] = folder
        yield metadata


def as_result(found: dict[str, Any], name: str, label: str, model: HarnessModel, seconds: float) -> Result:
    """What lm-eval returned for one task or group, as a `Result`: its first filter, with its own standard errors."""
    numbers = found["results"].get(name) or found.get("groups", {}).get(name) or {}
    better = found.get("higher_is_better", {}).get(name, {})
    n = found.get("n-samples", {}).get(name, {}).get("effective", 0)
    metrics = {}
    for key, value in numbers.items():
        metric, _, _filter = key.partition(",")
        if metric.endswith("_stderr") or metric == "sample_len" or metric in metrics or not _number(value):
            continue
        if metric.isdecimal() and value == -1:  # a length of ruler without rows
            continue
        stderr = numbers.get(f"{metric}_stderr,{_filter}")
        metrics[metric] = _metric(float(value), stderr, n, better.get(metric, True), metric.startswith("acc"))
    if not metrics:
        raise EvaluationError(f"--harness: lm-eval returned no numbers for {name}")
    return Result(
        label=label,
        task=f"{PREFIX}{name}",
        settings={"task_version": str(found.get("versions", {}).get(name))},
        version=VERSION,
        seed=0,
        rows=n,
        examples_hash="",
        metrics=metrics,
        model=model_facts(model.subject),
        time_s=round(seconds, 3),
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _metric(value: float, stderr: Any, rows: int, higher: bool, share: bool) -> dict[str, Any]:
    known = isinstance(stderr, int | float)
    spread = 1.96 * stderr if known else 0.0
    return {
        "value": value,
        "stderr": float(stderr) if known else None,
        "low": value - spread if known else None,
        "high": value + spread if known else None,
        "rows": rows,
        "chance": None,
        "better": "higher" if higher else "lower",
        "share": share,
    }

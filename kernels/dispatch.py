"""Which implementation serves a call: `choose` decides, `explain` says why.

Each operation registers its implementations in its `__init__.py`, best first. `auto` takes the first that supports the
call; a named one works or raises. `ZOO_KERNELS=reference` in the environment, or `use_implementation("reference")`,
takes the place of `auto`. An implementation's module is imported when it is first chosen.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

import torch

from zoo.kernels import OPERATIONS, registration

log = logging.getLogger("zoo.kernels")
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported
MIN_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16 products and asynchronous copies


@dataclass(frozen=True)
class Implementation:
    """A function that serves an operation.

    target: "module:function", called exactly as the public function is, with scale resolved and without impl.
    why_not: called with the same arguments; returns the reason why it cannot serve them, None if it can.
    slow: it is plain torch; a GPU runs it only if no kernel serves the call.
    """

    name: str
    target: str
    why_not: Callable[..., str | None] = lambda *tensors, **options: None
    slow: bool = False
    loaded: list[Callable] = field(default_factory=list, init=False, repr=False, compare=False)  # once imported


@dataclass(frozen=True)
class Choice:
    """The implementation that serves a call, and the reason.

    asked: it was asked for by name.  instead: a better one could not serve the call.
    """

    impl: str
    why: str
    asked: bool = False
    instead: bool = False


@dataclass
class Dispatcher:
    """What is known of the implementations in this process; the functions below read and write the one of them.

    registered: of each operation, best first.  last: what `auto` took last.  told: of which choices the log has said.
    failed: those that did not run on this machine, and why; pending: those that a backward pass found out about, until
    it is over.  forced: a name that stands for `auto`, and who asked for it.  plan: where `plan` notes calls.
    unfit: devices, with the reason why Triton kernels cannot run on them, None if they can.
    """

    registered: dict[str, tuple[Implementation, ...]] = field(default_factory=dict)
    last: dict[str, Choice] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    pending: dict[tuple[str, str], str] = field(default_factory=dict)
    forced: tuple[str, str] | None = None
    plan: list[tuple[str, Choice]] | None = None
    unfit: dict[torch.device, str | None] = field(default_factory=dict)


dispatcher = Dispatcher()


def register(op: str, *implementations: Implementation) -> None:
    """State the implementations of an operation, best first."""
    dispatcher.registered[op] = implementations


def call(op: str, impl: str, *tensors, **options):
    """Run `op` by the chosen implementation; if that asks for more than this GPU has, and nobody named it, by the next.

    Autocast is off inside: the dtype of the inputs decides, and scores and accumulators stay float32 as promised.
    """
    choice = choose(op, impl, *tensors, **options)
    device = _first(tensors).device.type
    if dispatcher.plan is not None:
        dispatcher.plan.append((op, choice))
        choice = Choice("reference", "")  # for the shapes: it runs on tensors that hold no data
    elif impl == "auto":
        _note(op, choice, device)
    _load(op, choice.impl)
    function = _find(op, choice.impl).loaded[0]
    if torch.compiler.is_compiling():
        with torch.autocast(device, enabled=False):
            return function(*tensors, **options)
    # Where another implementation may take over, backward passes have to know which operation they are of.
    registration.serving = op if impl == "auto" and not choice.asked else None
    try:
        # Asked first: the context takes 3 us. The meta device has no autocast.
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return function(*tensors, **options)
        return function(*tensors, **options)
    except Exception as error:
        if registration.serving is None:
            raise
        give_up(op, choice.impl, error)
    finally:
        registration.serving = None
    return call(op, impl, *tensors, **options)  # by the next implementation


def choose(op: str, impl: str, *tensors, **options) -> Choice:
    """The implementation for these arguments; ValueError, with the reason, if the one asked for cannot serve them."""
    name, asked_by = (impl, "impl=") if impl != "auto" else wanted()
    if name != "auto":
        reason = _find(op, name).why_not(*tensors, **options)
        if reason:
            raise ValueError(f"{op}: {name!r} (asked for by {asked_by}) cannot serve this call: {reason}.")
        return Choice(name, f"asked for by {asked_by}", asked=True)
    if dispatcher.pending and not _in_backward():
        dispatcher.failed.update(dispatcher.pending)
        dispatcher.pending.clear()
    passed_over: list[str] = []
    for candidate in dispatcher.registered[op]:
        reason = dispatcher.failed.get((op, candidate.name)) or _too_slow(candidate, *tensors)
        reason = reason or candidate.why_not(*tensors, **options)
        if reason is None:
            return Choice(candidate.name, "; ".join(passed_over) or "the best there is", instead=bool(passed_over))
        passed_over.append(f"not {candidate.name}: {reason}")
    raise ValueError(f"{op}: no implementation serves this call: {'; '.join(passed_over)}.")


class use_implementation:
    """Take `name` wherever a call says `auto`, from now on, or for the length of a `with`; "auto" undoes it.

    Goes before ZOO_KERNELS. Activation checkpointing runs functions again in backward: keep the same setting there.
    by: who asks, for messages.
    """

    def __init__(self, name: str, by: str = "use_implementation()"):
        self.before = dispatcher.forced
        dispatcher.forced = name, by

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception) -> None:
        dispatcher.forced = self.before


def plan(function: Callable[[], object]) -> list[tuple[str, Choice]]:
    """The operations that function() calls, in order, each with the implementation that would serve it, and why.

    Nothing but references runs; make the tensors under torch's FakeTensorMode, and they compute nothing either.
    """
    before, dispatcher.plan = dispatcher.plan, []
    try:
        function()
        return dispatcher.plan
    finally:
        dispatcher.plan = before


def explain(function: Callable[[], object] | None = None) -> str:
    """A table: the implementations of each operation, best first, what `auto` took last, and why.

    With a function of no arguments: the operations it calls, what would serve each, and why, as `plan`.
    """
    if function is not None:
        return "\n".join(f"{op:<26} {choice.impl:<10} {choice.why}" for op, choice in plan(function))
    name, asked_by = wanted()
    lines = [f"auto means {name!r}, by {asked_by}" if name != "auto" else "auto takes the first that supports a call"]
    for op, module in OPERATIONS.items():
        import_module(module)
        names = ", ".join(implementation.name for implementation in dispatcher.registered[op])
        taken = dispatcher.last.get(op)
        last = f"last: {taken.impl} ({taken.why})" if taken is not None else "not called yet"
        lines.append(f"{op:<26} {names:<24} {last}")
    return "\n".join(lines)


def why_not_triton(*tensors, **options) -> str | None:
    """A reason why Triton kernels cannot run on these tensors here, or None."""
    first = _first(tensors)
    if not _HAS_TRITON:
        return "triton is not installed"
    if first.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {first.device.type}, not on a CUDA device"
    if first.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels take float32, float16 and bfloat16, not {first.dtype}"
    return _unfit(first.device)


def wanted() -> tuple[str, str]:
    """(the implementation that stands for `auto`, who asked for it); "auto" if nobody did."""
    if dispatcher.forced is not None:
        return dispatcher.forced
    return os.environ.get("ZOO_KERNELS") or "auto", "ZOO_KERNELS"


def _find(op: str, name: str) -> Implementation:
    for implementation in dispatcher.registered[op]:
        if implementation.name == name:
            return implementation
    known = ", ".join(implementation.name for implementation in dispatcher.registered[op])
    raise ValueError(f"{op}: unknown implementation {name!r}; known: auto, {known}.")


def _first(tensors: tuple) -> torch.Tensor:
    return tensors[0][0] if isinstance(tensors[0], list) else tensors[0]


def _too_slow(candidate: Implementation, *tensors) -> str | None:
    """Triton's interpreter is for tests: a thousand times slower than the reference, so `auto` leaves it alone."""
    device = _first(tensors).device.type
    return f"the tensors are on {device}" if candidate.name == "triton" and device != "cuda" else None


def has_capability(device: torch.device, least: tuple[int, int]) -> bool:
    """Whether a CUDA device has this compute capability or more; a constant where torch.compile traces the caller."""
    return torch.cuda.get_device_capability(device) >= least


has_capability._dynamo_marked_constant = True  # type: ignore[attr-defined] # as _load below


def _unfit(device: torch.device) -> str | None:
    if device not in dispatcher.unfit:
        reason = None
        if device.type == "cuda" and torch.version.hip is not None:
            reason = "this is an AMD GPU, and the kernels are for NVIDIA's"  # so are their launch options
        elif device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < MIN_CAPABILITY:
                reason = f"this GPU has compute capability {capability[0]}.{capability[1]}, and the kernels need 8.0"
        dispatcher.unfit[device] = reason
    return dispatcher.unfit[device]


_unfit._dynamo_marked_constant = True  # type: ignore[attr-defined] # as _load below


def give_up(op: str, name: str, error: Exception) -> None:
    """Leave an implementation alone from now on, if it asks for more than this GPU has; raise any other error.

    During a backward pass: once it is over. What checkpointing computes again in it has to be what was computed before.
    """
    if type(error).__name__ != "OutOfResources" or name == "reference":
        raise error
    if (op, name) not in dispatcher.failed and (op, name) not in dispatcher.pending:
        log.warning("%s no longer runs as %s: this GPU has too little for it (%s)", op, name, error)
    known = dispatcher.pending if _in_backward() else dispatcher.failed
    known[op, name] = f"this GPU has too little for it ({error})"


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _note(op: str, choice: Choice, device: str) -> None:
    """Say once what `auto` takes: as a warning where a GPU gets the slow reference though there are kernels."""
    dispatcher.last[op] = choice
    if (op, choice.impl) not in dispatcher.told and not torch.compiler.is_compiling():
        dispatcher.told.add((op, choice.impl))
        plain = choice.impl == "reference" or _find(op, choice.impl).slow
        slow = device == "cuda" and plain and choice.instead
        log.log(logging.WARNING if slow else logging.INFO, "%s runs as %s (%s)", op, choice.impl, choice.why)


def _load(op: str, name: str) -> bool:
    """Import the implementation. Under torch.compile this runs while tracing, as its result is constant."""
    implementation = _find(op, name)
    if not implementation.loaded:
        module, function = implementation.target.split(":")
        implementation.loaded.append(getattr(import_module(module), function))
    return True


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo and with it Triton (a second).
_load._dynamo_marked_constant = True  # type: ignore[attr-defined] # a name of PyTorch's

"""Composer's Trainer, assembled from a recipe, run, and ended in every way it can end."""

import contextlib
import logging
import os
from functools import partial

import torch
from composer import Evaluator, Event
from composer.utils import dist, get_device

from zoo.counting import model_cost as cost
from zoo.errors import Problem, RecipeError, ZooError
from zoo.evaluation.registry import make_tasks
from zoo.files import sha256
from zoo.kernels.dispatch import use_implementation
from zoo.runs.folder import RunFolder
from zoo.runs.metrics import read_metrics
from zoo.training import checkpoints
from zoo.training.ahead import Ahead
from zoo.training.callbacks import Beats, ClipGradients, LearningRate, Metrics, refuse_non_finite, timed_event
from zoo.training.checkpoint_content import OfRun
from zoo.training.checkpoints import where_it_continues
from zoo.training.composer_fixes import (
    RestoreRandomState,
    Saver,
    StopOnSignal,
    end_process_groups,
    fixed,
)
from zoo.training.composer_model import LanguageModel
from zoo.training.continuing import Change
from zoo.training.device import peak_flops, why_no_graph
from zoo.training.drawing import Drawing
from zoo.training.final_weights import export, full_state_dict
from zoo.training.graphs import BatchStep, StepTrainer
from zoo.training.interrupts import Interrupted, StopRequests
from zoo.training.loggers import JsonLines, TensorBoard, composer_loggers, only_destinations
from zoo.training.optimizer import freeze, make_optimizer
from zoo.training.processes import Hosts
from zoo.training.scores import StopAtAccuracy, TaskScores, TrainingSubject
from zoo.training.screen import Screen
from zoo.training.setup import DATA_TIMEOUT_S, Setup
from zoo.training.sharding import Exchange, parallelism
from zoo.training.summary import Summary
from zoo.training.watchdog import Watchdog

log = logging.getLogger("zoo.training")


def run(
    recipe,
    folder: RunFolder,
    screen: Screen,
    changes: list[Change],
    requests: StopRequests,
    ahead: Ahead,
    drawing: Drawing,
) -> Summary:
    """Train to the recipe's duration, from the newest good checkpoint if there is one; write weights and summary.

    ahead: the processes that compile kernels, which it waits for.  drawing: of the model's weights.
    Raises Interrupted if `requests` received a signal, KeyboardInterrupt if it came before the first batch.
    """
    kernels = recipe.train.kernels
    with fixed(), contextlib.nullcontext() if kernels == "auto" else use_implementation(kernels, "train.kernels"):
        setup = Setup.make(recipe, folder, screen, changes, requests)
        watchdog = Watchdog(
            recipe.train.stall_minutes,
            folder.log,
            f"rank {setup.device.rank}, process {os.getpid()}",
            lambda: where_it_continues(folder.checkpoints),
        )
        try:
            with watchdog, Engine(setup, requests, watchdog, drawing) as engine:
                ahead.wait_with_all()
                engine.fit()
                summary = engine.finish()
        except ZooError:  # every process raises it after the same batch
            end_process_groups()
            raise
        end_process_groups()
        return summary


class Engine:
    """A Trainer with the zoo's callbacks, its state loaded from the checkpoint if there is one."""

    def __init__(self, setup: Setup, requests: StopRequests, watchdog: Watchdog, drawing: Drawing):
        self.setup, self.requests, self.watchdog = setup, requests, watchdog
        train, device = setup.recipe.train, setup.device
        decoder = drawing.take()
        decoder.activation_checkpointing = train.activation_checkpointing
        decoder.narrow_stream = train.residual_stream == "bf16"
        decoder.max_documents = setup.prepared.max_documents
        if setup.initial is not None:
            setup.initial.load_into(decoder)
        freeze(decoder, train.freeze)
        self.n_parameters = sum(parameter.numel() for parameter in decoder.parameters())
        self.loaders = {split: setup.loader(split) for split in ("train", "validation")}
        model = LanguageModel(decoder, setup.token_bytes(), answers=setup.has_answers)
        self.metric_names = list(model.get_metrics())
        if not device.sharded:  # before the optimiser, which asks where the weights are
            model = get_device(device.name).module_to_device(model)
        self.stop_at = self._make_stop_at()
        self.hosts = Hosts(DATA_TIMEOUT_S)
        self.stopper, restore = StopOnSignal(requests, setup.plan.saves, self.hosts), RestoreRandomState()
        self.lines: JsonLines | None = None
        self.writers, self.evaluator = self._make_writers(), self._make_evaluator()
        optimizer = make_optimizer(decoder, train.optimizer)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        try:
            of_run = OfRun(setup.run, self.lines and self.lines.mark)
            callbacks = [restore, of_run, *self._callbacks(model, decoder), self._saver()]
            self.trainer = self._make_trainer(model, optimizer, callbacks)
        except BaseException:  # a checkpoint that is refused
            self._close_own()
            raise
        restore.state_dicts = self.trainer._rng_state
        self.trainer.hosts, self.trainer.step = self.hosts, self._make_step()
        self.trainer.waits_after = self._waits_after
        self.trainer.exchange = Exchange(train, self.trainer.state.model, device.sharded)
        watchdog.beat("the model and the loaders were made")

    def _make_trainer(self, model: LanguageModel, optimizer: torch.optim.Optimizer, callbacks: list) -> StepTrainer:
        """Composer's trainer with the state of the checkpoint, if there is one."""
        setup, device, train = self.setup, self.setup.device, self.setup.recipe.train
        return StepTrainer(
            model=model,
            optimizers=optimizer,
            train_dataloader=self.loaders["train"],
            eval_dataloader=self.evaluator,
            max_duration=f"{setup.plan.total}ba",
            device=device.name,
            precision="amp_bf16" if device.precision == "bf16" else "fp32",
            device_train_microbatch_size=device.micro_batch,
            accumulate_train_batch_on_tokens=True,
            parallelism_config=parallelism(train) if device.sharded else None,
            callbacks=callbacks,
            loggers=only_destinations(composer_loggers(train.loggers, setup.recipe.name, setup.folder.path)),
            load_path=str(setup.checkpoint.path) if setup.checkpoint else None,
            seed=setup.recipe.seed,
            run_name=setup.recipe.name,
            progress_bar=False,
        )

    def fit(self) -> None:
        """Train; validate before the first batch, and where an earlier session left that out.

        Raises Interrupted if a signal ended it early.
        """
        setup = self.setup
        validates, trains = self._owes_validation(), setup.from_batch < setup.plan.total and not self._had_reached()
        if not (validates or trains):  # killed between the last checkpoint and the weights
            return
        self.requests.enter("stops after this batch and saves")
        # Backward on this thread: torch's own thread for a GPU costs short steps a millisecond (docs/log.md).
        try:
            with torch.autograd.set_multithreading_enabled(False):
                if validates:
                    self.trainer.eval()
                    if self.stop_at is not None and self.stop_at.reached:
                        trains = False
                if trains and not self.stopper.stopped:
                    setup.screen.start(setup.plan, setup.from_batch)
                    self.trainer.fit()
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once; {self.where_it_continues()}") from None
        finally:
            setup.screen.close()
        done = int(self.trainer.state.timestamp.batch)
        ended = done == setup.plan.total or (self.stop_at is not None and self.stop_at.reached)
        if not ended or self.stopper.cut_short:
            raise Interrupted(f"stopped after batch {done} of {setup.plan.total}; {self.where_it_continues()}")

    def _owes_validation(self) -> bool:
        """Whether the validation of this session's first batch is missing: a signal cut it short, or none was yet."""
        setup = self.setup
        if self.evaluator is None or not (setup.from_batch == 0 or setup.plan.validates(setup.from_batch)):
            return False
        owes = [False]
        if setup.device.rank == 0:
            records = read_metrics(setup.folder.metrics)
            owes = [not any("validation_loss" in r and r["batch"] == setup.from_batch for r in records)]
        dist.broadcast_object_list(owes, src=0)
        return owes[0]

    def _had_reached(self) -> bool:
        """Whether an earlier session ended at `train.stop_at`, and was killed before the weights were written."""
        reached = [False]
        if self.stop_at is not None and self.setup.device.rank == 0:
            records = read_metrics(self.setup.folder.metrics)
            known = [r.get("validation_accuracy", 0) for r in records if r["batch"] == self.setup.from_batch]
            reached = [max(known, default=0) >= self.stop_at.share]
        dist.broadcast_object_list(reached, src=0)
        if self.stop_at is not None and reached[0]:
            self.stop_at.reached = True
        return reached[0]

    def finish(self) -> Summary:
        """Write the weights and the summary, and print it. All processes must call this."""
        self.requests.enter("ends when the weights are written")
        self.watchdog.beat("the last batch")
        setup, clock = self.setup, self.trainer.state.timestamp
        state = full_state_dict(self.trainer.state.model)
        digest = export(setup.folder, setup.recipe, state, setup.prepared.tokenizer) if setup.device.rank == 0 else ""
        records = read_metrics(setup.folder.metrics) if setup.device.rank == 0 else []
        validations = {record["batch"]: record for record in records if "validation_loss" in record}
        before, after = validations.get(0, {}), validations.get(int(clock.batch), {})
        summary = Summary(
            name=setup.recipe.name,
            run_dir=setup.folder.path,
            batches=int(clock.batch),
            tokens=int(clock.token),
            time_s=round(clock.total_wct.total_seconds(), 3),
            parameters=self.n_parameters,
            loss_before=before.get("validation_loss"),
            loss_after=after.get("validation_loss"),
            bits_per_byte_before=before.get("validation_bits_per_byte"),
            bits_per_byte_after=after.get("validation_bits_per_byte"),
            sha256=digest,
            metrics_sha256=sha256(setup.folder.metrics) if setup.device.rank == 0 else None,
            init_from=None if (began := setup.init_record()) is None else began.model_dump(),
        )
        if setup.device.rank == 0:
            setup.folder.write_summary(summary.as_dict())
        setup.screen.say(summary.text(writes_text=setup.prepared.tokenizer is not None))
        return summary

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind, *exception) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Close the trainer, the metrics files and the datasets.

        failed: leave out the barrier at the end of `Trainer.close`. If this process alone has failed, the others wait
        for it in another exchange; it has to end, so that its launcher ends them.
        """
        if failed:
            self.trainer.engine.close()
        else:
            self.trainer.close()
        self._close_own()

    def _close_own(self) -> None:
        for spec in filter(None, self.loaders.values()):
            spec.dataloader.dataset.close()
        for writer in self.writers[1:]:
            writer.close()

    def where_it_continues(self) -> str:
        """A sentence about the newest checkpoint, for messages."""
        return where_it_continues(self.setup.folder.checkpoints)

    def _make_stop_at(self) -> StopAtAccuracy | None:
        wanted = self.setup.recipe.train.stop_at
        if wanted is None:
            return None
        if not self.setup.has_answers or self.loaders["validation"] is None:
            raise RecipeError([Problem("accuracy needs validation rows of data source synthetic", key="train.stop_at")])
        return StopAtAccuracy(wanted.accuracy)

    def _callbacks(self, model: LanguageModel, decoder) -> list:
        setup = self.setup
        clip = ClipGradients(setup.recipe.train.clip_norm)
        metrics = Metrics(
            clip,
            self.writers,
            self._mfu_per_token(),
            check=partial(refuse_non_finite, last_good=self.where_it_continues),
            saves=setup.plan.saves,
            after_batch=partial(decoder.after_batch, self._total),
            mark=timed_event if setup.device.on_gpu else None,
        )
        return [
            LearningRate(setup.plan, self.peaks),
            clip,
            metrics,
            self.stopper,
            Beats(self.watchdog.beat),
            *self._scores(model, decoder, metrics),
            *filter(None, [self.stop_at]),
        ]

    def _waits_after(self, batches_done: int) -> bool:
        """Whether training waits for the device after so many batches: for a validation, a checkpoint, or its end after
        a signal to this process.
        """
        plan, told = self.setup.plan, self.requests.received is not None
        return told or plan.saves(batches_done) or (self.evaluator is not None and plan.validates(batches_done))

    def _total(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.setup.device.world_size > 1:
            dist.all_reduce(tensor, reduce_operation="SUM")

    def _make_step(self) -> BatchStep | None:
        """What runs the batches on one GPU or in several processes; None where Composer's own step does.

        That is elsewhere, where graphs are off, and where several processes ask after each pass whether one of them
        has too little memory.
        """
        train, device = self.setup.recipe.train, self.setup.device
        reason = why_no_graph(train, device.on_gpu, device.world_size)
        if reason is not None:
            log.info("cuda_graph: not used: %s", reason)
        several = device.world_size > 1 and device.micro_batch != "auto"
        if train.cuda_graph == "off" or not (several or (device.on_gpu and device.world_size == 1)):
            return None
        return BatchStep(train.cuda_graph if reason is None else "off")

    def _scores(self, model: LanguageModel, decoder, metrics: Metrics) -> list:
        """What scores the evaluation tasks of the recipe; nothing where it names none."""
        setup = self.setup
        if not setup.recipe.eval.tasks:
            return []
        subject = TrainingSubject(model, decoder, setup.prepared, setup.device.precision, setup.device.sharded)
        tasks = make_tasks(setup.recipe.eval.tasks)
        # The stopper itself notices a signal at a batch only, and scoring may take many minutes.
        stopped = lambda: self.stopper.stopped or self.requests.received is not None  # noqa: E731 - asked later
        beat, last_good = self.watchdog.beat, self.where_it_continues
        write, say = metrics.scores, setup.screen.say
        return [TaskScores(subject, tasks, setup.plan.validates, stopped, write, beat, last_good, say)]

    def _make_writers(self) -> list:
        setup = self.setup
        if setup.device.rank != 0:
            return []
        folder, start = setup.folder, setup.from_batch
        self.lines = lines = JsonLines(folder.metrics, start)
        if lines.missing:
            setup.screen.say(f"{folder.metrics}: the records of {lines.missing:,} of {start:,} batches are missing")
        return [setup.screen, lines, TensorBoard(folder.tensorboard, start)]

    def _saver(self) -> Saver:
        setup, stopper, stop_at = self.setup, self.stopper, self.stop_at

        def due(state, event: Event) -> bool:
            return event == Event.BATCH_CHECKPOINT and (
                setup.plan.saves(int(state.timestamp.batch))
                or stopper.stopped
                or (stop_at is not None and stop_at.reached)
            )

        keep = setup.recipe.train.checkpoint.keep
        saver = Saver(
            folder=str(setup.folder.checkpoints),
            filename=checkpoints.FILENAME,
            latest_filename=None,
            remote_file_name=None,
            latest_remote_file_name=None,
            save_interval=due,
            overwrite=True,
            num_checkpoints_to_keep=-1 if keep == "all" else keep,
        )
        if setup.device.rank == 0:  # so that those of earlier sessions are counted and removed in turn
            saver.saved_checkpoints = [str(found.path) for found in checkpoints.listed(setup.folder.checkpoints)]
        return saver

    def _make_evaluator(self) -> Evaluator | None:
        setup, spec = self.setup, self.loaders["validation"]
        if spec is None:
            return None

        def due(state, event: Event) -> bool:
            return event == Event.BATCH_END and setup.plan.validates(int(state.timestamp.batch))

        wanted = setup.recipe.eval.batches
        return Evaluator(
            label="validation",
            dataloader=spec,
            metric_names=self.metric_names,
            subset_num_batches=wanted if isinstance(wanted, int) and wanted < len(spec.dataloader) else -1,
            eval_interval=due,
            device_eval_microbatch_size=setup.device.micro_batch,
        )

    def _mfu_per_token(self) -> float | None:
        """Share of the devices' peak that one token a second takes; None where the peak is not known.

        A training step is counted as three forwards; what activation checkpointing computes again is not counted.
        """
        device, model = self.setup.device, self.setup.recipe.model
        peak = peak_flops(torch.cuda.get_device_name(), device.precision) if device.on_gpu else None
        if peak is None:
            return None
        forward = cost.model_cost(model, self.setup.prepared.seq_len).flops_per_token
        return 3 * forward / (peak * device.world_size)

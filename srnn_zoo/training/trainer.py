"""One run of training: update by update, epoch by epoch, always at a place from which it can go on."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from timm.utils import ModelEmaV3
from timm.utils.distributed import distribute_bn
from torch import Tensor
from tqdm import tqdm

from srnn_zoo.datasets.images import ImageError
from srnn_zoo.weights.saved import RECIPE_FILE

from .loader import Batch, TrainBatches, eval_loader, num_workers, seed_everything, train_loader
from .losses import TrainingForward, create_loss, create_mixup
from .optimizer import create_optimizer, create_schedule, decay_to_identity, learning_rate, scale_recurrence
from .run_folder import FitResult, Progress, RunFolder
from .state import Interrupted, Run, StopSignals, do_together, find_state, read_progress, write_state
from .tasks import TrainingTask

if TYPE_CHECKING:
    from accelerate import Accelerator

    from srnn_zoo.models.srnn import SRNN

_logger = logging.getLogger(__name__)

_IMAGES_FOR_TEMPERATURES = 4096  # of a process: one number a level does not need more


class Trainer:
    """Trains a model by a run's recipe, until a signal asks for a stop."""

    def __init__(self, run: Run, signals: StopSignals) -> None:
        self.run, self.signals = run, signals
        self.model, self.recipe, self.accelerator, self.folder = run.model, run.recipe, run.accelerator, run.folder
        self.progress = Progress(run.describe())
        self._load_data()
        self.net: Any = TrainingForward(self.model, self.recipe)
        self.mixup = create_mixup(self.recipe, self.model.num_classes, self.batches.piece)
        self.loss = create_loss(self.recipe, run.task, run.loss)
        self._losses: list[tuple[Tensor, int]] = []  # of the pieces of an update, on their device, and their images
        self._last_state = 0.0  # when it was written

    def _load_data(self) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        processes = accelerator.num_processes
        share = {"num_processes": processes, "process": accelerator.process_index}
        workers, pin_memory = num_workers(self.run.workers, processes), accelerator.device.type == "cuda"
        train, val, target = self.run.train, self.run.val, self.run.target
        self.batches = TrainBatches(len(train), recipe.batch_size, recipe.grad_accum_steps, recipe.seed, **share)
        self.train_loader = train_loader(train, self.batches, workers, pin_memory, target)
        self.val_loader = eval_loader(
            val,
            self.batches.piece,
            recipe.seed,
            **share,
            workers=workers,
            pin_memory=pin_memory,
            target=target,
        )

    def _prepare(self) -> None:
        """Model and optimiser on their device and for their processes; what can be refused was refused before."""
        model, recipe = self.model, self.recipe
        self.run.prepare_model()
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing()
        scale_recurrence(model, recipe)  # a run that is resumed has its weights loaded over this
        optimizer = create_optimizer(model, recipe)
        self.schedule = create_schedule(optimizer, recipe, self.batches.updates)
        self.ema = ModelEmaV3(model, recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        self.measured = model if self.ema is None else cast("SRNN", self.ema.module)  # which is validated and saved
        self.net, self.optimizer = self.accelerator.prepare(self.net, optimizer)
        if self.ema is not None:
            self.accelerator.register_for_checkpointing(self.ema)

    def train(self, resume: bool) -> FitResult:
        """All epochs that are left."""
        state = self._saved_state() if resume else self._new_folder()
        self._prepare()
        if state is not None:
            self.accelerator.load_state(os.fspath(state))
            # with more epochs another learning rate than the state's
            self.schedule.step_update(self._updates())
            _logger.info("resumed after epoch %d, batch %d", self.progress.epoch, self.progress.update)
        elif self.folder is not None:
            self._write_state()  # before the work, so that there is always one to go on from
        while self.progress.epoch < self.recipe.epochs and not self._out_of_patience():
            self._train_epoch()
            self._finish_epoch()
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.model.eval()
        self.run.set_temperatures(self.model, self.progress.temperatures)
        return self.run.result(self.progress.history, self.progress.skipped, self.progress.val_images)

    def _new_folder(self) -> None:
        if (folder := self.folder) is not None:
            self._in_main_process(lambda: folder.start(self.recipe, self.run.holdout))

    def _saved_state(self) -> Path:
        """The state to go on from, whose progress becomes this run's."""
        folder = cast(RunFolder, self.folder)
        state = find_state(folder.state)
        if state is None:
            raise FileNotFoundError(f"{folder.path} holds no run to resume: it has no state")
        progress = Progress(**read_progress(state))
        self.run.check_same(progress.run, folder.path)
        progress.run = self.run.describe()  # which may have more epochs
        self._in_main_process(lambda: self.recipe.to_toml(folder.path / RECIPE_FILE))
        self.progress = progress
        return state

    def _train_epoch(self) -> None:
        here = self.progress
        self.batches.go_to(here.epoch, here.update)
        self.net.train()
        first = here.update * self.recipe.grad_accum_steps
        before, started = here.seconds, time.monotonic()
        self._last_state = started
        with tqdm(
            total=self.batches.updates,
            initial=here.update,
            desc=f"epoch {here.epoch + 1}/{self.recipe.epochs}",
            unit="batch",
            leave=False,
            disable=not self.run.bars,
        ) as bar:
            for piece, batch in enumerate(self.train_loader, first):
                seed_everything(self.recipe.seed, here.epoch, piece, self.accelerator.process_index)
                with self.accelerator.accumulate(self.net):
                    self._add_gradients(batch)
                    if not self.accelerator.sync_gradients:
                        continue
                    terminated, interrupted, state_is_due = self._agree_on_update()
                    self._step()
                here.seconds = before + time.monotonic() - started
                bar.set_postfix(loss=f"{here.loss_sum / here.images:.3f}")
                bar.update()
                self._stop_if(terminated, interrupted)
                if state_is_due:
                    self._write_state()

    def _add_gradients(self, batch: Batch) -> None:
        """Add those of one piece of an update."""
        self.run.skip(batch.skipped, self.progress.skipped)
        if batch.images is None:
            raise ImageError(f"no image of a batch can be read, nor any of those that follow: {batch.skipped[0]}")
        images = batch.images.to(self.accelerator.device, memory_format=self.run.memory_format, non_blocking=True)
        targets = batch.targets.to(self.accelerator.device, non_blocking=True)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        loss = self.loss(self.net(images), targets)
        self.accelerator.backward(loss)
        self._losses.append((loss.detach(), len(images)))

    def _agree_on_update(self) -> tuple[bool, bool, bool]:
        """Before the step of an update: refuse a loss that is not finite, and ask all processes how to go on.

        Only here, once an update, are losses read from the device, and do the processes wait for each other.

        Returns:
            whether SIGTERM has come, whether SIGINT has come, and whether it is time to write the state.
        """
        losses = torch.stack([loss for loss, _ in self._losses]).tolist()
        broken = [loss for loss in losses if not math.isfinite(loss)]
        is_due = self.folder is not None and time.monotonic() - self._last_state >= self.run.state_seconds
        is_broken, *go_on = self._in_any_process(bool(broken), *self._signals(), is_due)
        here = self.progress
        if is_broken:
            loss = broken[0] if broken else "not finite in another process"
            self._give_up(f"the loss is {loss} at epoch {here.epoch + 1}, batch {here.update + 1}")
        for loss, (_, images) in zip(losses, self._losses, strict=True):
            here.loss_sum += loss * images
            here.images += images
        self._losses.clear()
        return cast(Any, tuple(go_on))

    def _step(self) -> None:
        """The optimiser's step, and all that follows it."""
        here = self.progress
        if self.recipe.clip_grad:
            self.accelerator.clip_grad_norm_(self.net.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            decay_to_identity(self.model, self.optimizer, self.recipe)
        here.update += 1
        here.lr = learning_rate(self.optimizer)
        self.schedule.step_update(self._updates())
        if self.ema is not None:
            self.ema.update(self.model, step=self._updates())

    def _updates(self) -> int:
        """How many there were in all epochs."""
        return self.progress.epoch * self.batches.updates + self.progress.update

    def _finish_epoch(self) -> None:
        """Validation, the log, the saved models, and the state from which the next epoch begins."""
        here, started = self.progress, time.monotonic()
        if self.accelerator.num_processes > 1:
            distribute_bn(self.model, self.accelerator.num_processes, reduce=True)
            distribute_bn(self.measured, self.accelerator.num_processes, reduce=True)
        task, between = self.run.task, self._between_batches
        evidence, here.temperatures = _validate(self.measured, task, self.val_loader, self.accelerator, between)
        here.val_images = len(evidence)
        self.run.set_temperatures(self.measured, here.temperatures)
        self._stop_if(*self._in_any_process(*self._signals()))
        here.seconds += time.monotonic() - started
        loss_sum, images = self._sum(here.loss_sum, here.images)
        row = {"epoch": here.epoch + 1, "lr": here.lr, "train_loss": loss_sum / images, **task.measure(evidence)}
        row["seconds"] = here.seconds
        self._check_weights()  # before a model takes a good one's place
        is_best = not here.history or task.merit(row) > max(map(task.merit, here.history))
        here.history.append(row)
        here.epoch, here.update, here.loss_sum, here.images, here.seconds = here.epoch + 1, 0, 0.0, 0, 0.0
        if self.accelerator.is_main_process:
            self.run.report(row)
        if self.folder is not None:
            self._gather_skipped()
            self._in_main_process(lambda: self.run.save(self.measured, here.history, here.skipped, best=is_best))
            self._write_state()

    def _out_of_patience(self) -> bool:
        history = self.progress.history
        if not self.recipe.patience or not history:
            return False
        since = len(history) - int(max(history, key=self.run.task.merit)["epoch"])
        if since < self.recipe.patience:
            return False
        _logger.info("stopped early: none of the last %d epochs was better (patience %d)", since, self.recipe.patience)
        return True

    def _check_weights(self) -> None:
        """A step may break the weights though its loss was finite; such a state must not take a good one's place."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all()
        if self._in_any_process(not finite)[0]:
            here = self.progress
            self._give_up(f"the weights are not finite after epoch {here.epoch + 1}, batch {here.update}")

    def _give_up(self, reason: str) -> NoReturn:
        kept = ""
        if self.folder is not None and self.progress.epoch:
            kept = f"; {self.folder.path / 'last'} holds the model of epoch {self.progress.epoch}"
        raise FloatingPointError(f"{reason}{kept}: choose a lower lr, a longer warm-up, clip_grad or another precision")

    def _between_batches(self, batch: Batch) -> None:
        self.run.skip(batch.skipped, self.progress.skipped)
        if self.accelerator.num_processes == 1:  # several have shares of different length, and stop afterwards
            self._stop_if(*self._signals())

    def _signals(self) -> tuple[bool, bool]:
        """Whether SIGTERM and SIGINT have come to this process."""
        return self.signals.received == signal.SIGTERM, self.signals.received == signal.SIGINT

    def _stop_if(self, terminated: bool, interrupted: bool) -> None:
        """Write the state and end the run if a signal has come to any process: all of them stop at the same place."""
        if not terminated and not interrupted:
            return
        here, kept = self.progress, "nothing is saved, as there is no output folder"
        if self.folder is not None:
            self._write_state()
            kept = f"the state is saved in {self.folder.state}; resume to go on"
        signum = signal.SIGTERM if terminated else signal.SIGINT
        raise Interrupted(signum, f"stopped by {signum.name} at epoch {here.epoch + 1}, batch {here.update}: {kept}")

    def _write_state(self) -> None:
        folder = cast(RunFolder, self.folder)
        self._check_weights()
        self._gather_skipped()
        self.progress.states += 1
        write_state(self.accelerator, folder.state, self.progress.states, dataclasses.asdict(self.progress))
        self._last_state = time.monotonic()

    def _gather_skipped(self) -> None:
        from accelerate.utils import gather_object

        self.progress.skipped = list(dict.fromkeys(gather_object(self.progress.skipped)))

    def _sum(self, *values: float) -> list[float]:
        """Over all processes, in one reduction."""
        if self.accelerator.num_processes == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return cast(Any, self.accelerator.reduce(tensor, "sum")).tolist()

    def _in_main_process(self, work: Callable[[], Any]) -> None:
        do_together(self.accelerator, work if self.accelerator.is_main_process else None)

    def _in_any_process(self, *flags: bool) -> list[bool]:
        """Which of the flags are set in any process."""
        return [count > 0 for count in self._sum(*map(float, flags))]


@torch.no_grad()
def _validate(
    model: SRNN,
    task: TrainingTask,
    loader: Iterable[Batch],
    accelerator: Accelerator,
    on_batch: Callable[[Batch], Any],
) -> tuple[Tensor, list[float]]:
    """The task's evidence of the last level's answers, a row for each image that can be read; and the temperatures.

    Every image counts once, however many processes share the split, and `on_batch` is called with every batch. The
    temperatures come from the first images of every process.
    """
    from accelerate.utils import gather_object

    model.eval()
    kept: list[tuple[Tensor, Tensor]] = []
    evidence: list[Tensor] = []
    for batch in loader:
        on_batch(batch)
        if batch.images is None:
            continue
        images, targets = batch.images.to(accelerator.device), batch.targets.to(accelerator.device)
        with accelerator.autocast():
            answers = torch.stack(list(model.exit_logits(model.pyramid_features(images)))).float()
        if sum(len(targets) for _, targets in kept) < _IMAGES_FOR_TEMPERATURES:
            kept.append((answers.cpu(), targets.cpu()))
        evidence.append(task.evidence(answers[-1], targets).cpu())
    if not (everywhere := gather_object(evidence)):
        raise ValueError("no image of the validation split can be read")
    answers, targets = zip(*gather_object(kept), strict=True)
    temperatures = task.temperatures(torch.cat(answers, dim=1), torch.cat(targets))
    return torch.cat(everywhere), temperatures

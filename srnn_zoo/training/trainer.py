"""One run of training: update by update, epoch by epoch, always at a place from which it can go on."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from timm.utils import ModelEmaV3, accuracy
from timm.utils.distributed import distribute_bn
from torch.nn import functional as F
from tqdm import tqdm

from srnn_zoo.datasets.images import ImageError

from .loader import Batch, TrainBatches, eval_loader, num_workers, seed_everything, train_loader
from .losses import TrainingForward, create_loss, create_mixup
from .optimizer import create_optimizer, create_schedule, decay_to_identity, learning_rate, scale_recurrence
from .recipe import Recipe
from .run_folder import FitResult, Progress, RunFolder, check_same_run, describe_run, merit
from .state import Interrupted, StopSignals, find_state, read_progress, write_state

if TYPE_CHECKING:
    from accelerate import Accelerator

    from srnn_zoo.models.srnn import SRNN

__all__ = ["Trainer"]

_logger = logging.getLogger(__name__)


class Trainer:
    """One run; `fit` says what its arguments mean."""

    def __init__(
        self,
        model: SRNN,
        train: Any,
        val: Any,
        recipe: Recipe,
        accelerator: Accelerator,
        folder: RunFolder | None,
        signals: StopSignals,
        *,
        fatal: bool,
        workers: int | None,
        dataset: str,
        state_seconds: float,
        bars: bool,
    ) -> None:
        self.model, self.recipe, self.accelerator = model, recipe, accelerator
        self.folder, self.signals, self.dataset = folder, signals, dataset
        self.fatal, self.state_seconds = fatal, state_seconds
        self.bars = bars and accelerator.is_local_main_process
        self.progress = Progress(describe_run(model, recipe, train))
        self._load_data(train, val, workers)
        self._prepare()

    def _load_data(self, train: Any, val: Any, workers: int | None) -> None:
        recipe, processes = self.recipe, self.accelerator.num_processes
        share = {"num_processes": processes, "process": self.accelerator.process_index}
        loading = {
            "workers": num_workers(workers, processes),
            "pin_memory": self.accelerator.device.type == "cuda",
        }
        self.batches = TrainBatches(len(train), recipe.batch_size, recipe.grad_accum_steps, recipe.seed, **share)
        self.train_loader = train_loader(train, self.batches, **loading)
        self.val_loader = eval_loader(val, self.batches.piece, recipe.seed, **share, **loading)

    def _prepare(self) -> None:
        """Model, loss and optimiser on their device and for their processes."""
        model, recipe, accelerator = self.model, self.recipe, self.accelerator
        # on a CPU, bf16 convolutions in this format give nan now and then (torch 2.14, without any of this package)
        unsafe = recipe.precision == "bf16" and accelerator.device.type == "cpu"
        self.memory_format = torch.channels_last if recipe.channels_last and not unsafe else torch.contiguous_format
        model.to(accelerator.device).to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing()
        scale_recurrence(model, recipe)  # a run that is resumed has its weights loaded over this
        self.loss = create_loss(recipe)
        self.mixup = create_mixup(recipe, model.num_classes, self.batches.piece)
        optimizer = create_optimizer(model, recipe)
        self.schedule = create_schedule(optimizer, recipe, self.batches.updates)
        self.ema = ModelEmaV3(model, recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        self.net, self.optimizer = accelerator.prepare(TrainingForward(model, recipe), optimizer)
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)

    @property
    def measured(self) -> SRNN:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.ema is None else cast("SRNN", self.ema.module)

    def run(self, resume: bool) -> FitResult:
        """All epochs that are left."""
        self._resume() if resume else self._start()
        while self.progress.epoch < self.recipe.epochs and not self._out_of_patience():
            self._train_epoch()
            self._finish_epoch()
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.model.eval()
        history = self.progress.history
        folder = None if self.folder is None else self.folder.path
        return FitResult(history, max(history, key=merit), self.progress.skipped, folder)

    def _start(self) -> None:
        if self.folder is None:
            return
        self._main_process_does(lambda folder: folder.start(self.recipe))
        self._write_state()  # before the work, so that there is always one to go on from

    def _resume(self) -> None:
        folder = cast(RunFolder, self.folder)
        state = find_state(folder.state)
        if state is None:
            raise FileNotFoundError(f"{folder.path} holds no run to resume: it has no state")
        progress = Progress(**read_progress(state))
        check_same_run(self.progress.run, progress.run, folder.path)
        self.accelerator.load_state(os.fspath(state))
        self.progress = progress
        _logger.info("resumed after epoch %d, batch %d", progress.epoch, progress.update)

    def _train_epoch(self) -> None:
        here = self.progress
        self.batches.go_to(here.epoch, here.update)
        self.net.train()
        first = here.update * self.recipe.grad_accum_steps
        before, started = here.seconds, time.monotonic()
        last_state = started
        with self._bar(here) as bar:
            for piece, batch in enumerate(self.train_loader, first):
                seed_everything(self.recipe.seed, here.epoch, piece, self.accelerator.process_index)
                self._learn(batch)
                if not self.accelerator.sync_gradients:
                    continue
                self._finish_update()
                now = time.monotonic()
                here.seconds = before + now - started
                bar.set_postfix(loss=f"{here.loss_sum / here.images:.3f}")
                bar.update()
                self._stop_if_asked()
                if self.folder is not None and self._agree(now - last_state >= self.state_seconds):
                    self._write_state()
                    last_state = time.monotonic()

    def _learn(self, batch: Batch) -> None:
        """Gradients of one piece of an update, and the optimiser's step after the last one."""
        self._note_skipped(batch)
        if batch.images is None:
            raise ImageError(f"no image of a batch can be read, nor any of those that follow: {batch.skipped[0]}")
        images = batch.images.to(self.accelerator.device, memory_format=self.memory_format, non_blocking=True)
        targets = batch.targets.to(self.accelerator.device, non_blocking=True)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        with self.accelerator.accumulate(self.net):
            loss = self.loss(self.net(images), targets)
            value = loss.item()
            self._check_finite(value)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.recipe.clip_grad:
                self.accelerator.clip_grad_norm_(self.net.parameters(), self.recipe.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.progress.loss_sum += value * len(images)
        self.progress.images += len(images)

    def _finish_update(self) -> None:
        here = self.progress
        if self.recipe.identity_decay and not self.accelerator.optimizer_step_was_skipped:
            decay_to_identity(self.model, self.optimizer, self.recipe)
        here.update += 1
        here.lr = learning_rate(self.optimizer)
        updates = here.epoch * self.batches.updates + here.update
        self.schedule.step_update(updates)
        if self.ema is not None:
            self.ema.update(self.model, step=updates)

    def _finish_epoch(self) -> None:
        """Validation, the log, the saved models, and the state from which the next epoch begins."""
        here, started = self.progress, time.monotonic()
        if self.accelerator.num_processes > 1:
            distribute_bn(self.model, self.accelerator.num_processes, reduce=True)
            distribute_bn(self.measured, self.accelerator.num_processes, reduce=True)
        measures = _validate(self.measured, self.val_loader, self.accelerator, self._between_batches)
        self._stop_if_asked()
        here.seconds += time.monotonic() - started
        loss_sum, images = self._sum(here.loss_sum, here.images)
        row = {"epoch": here.epoch + 1, "lr": here.lr, "train_loss": loss_sum / images, **measures}
        row["seconds"] = here.seconds
        self._check_weights()  # before a model takes a good one's place
        is_best = not here.history or merit(row) > max(map(merit, here.history))
        here.history.append(row)
        here.epoch, here.update, here.loss_sum, here.images, here.seconds = here.epoch + 1, 0, 0.0, 0, 0.0
        self._report(row)
        if self.folder is not None:
            self._gather_skipped()
            self._main_process_does(lambda folder: self._save(folder, row, is_best))
            self._write_state()

    def _save(self, folder: RunFolder, row: dict[str, float], is_best: bool) -> None:
        for which in ("best", "last") if is_best else ("last",):
            folder.save_model(self.measured, which, self.recipe, self.dataset, row)
        folder.write_log(self.progress.history)
        folder.write_skipped(self.progress.skipped)

    def _report(self, row: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            _logger.info(
                "epoch %d/%d  lr %.2g  loss %.3f  val loss %.3f  top-1 %.1f %%  top-5 %.1f %%  %.0f s",
                *(row["epoch"], self.recipe.epochs, row["lr"], row["train_loss"], row["val_loss"]),
                *(row["val_top1"], row["val_top5"], row["seconds"]),
            )

    def _out_of_patience(self) -> bool:
        history = self.progress.history
        if not self.recipe.patience or not history:
            return False
        return len(history) - max(history, key=merit)["epoch"] >= self.recipe.patience

    def _check_finite(self, loss: float) -> None:
        here = self.progress
        if self._agree(not math.isfinite(loss)):
            self._give_up(f"the loss is {loss} at epoch {here.epoch + 1}, batch {here.update + 1}")

    def _check_weights(self) -> None:
        """A step may break the weights though its loss was finite; such a state must not take a good one's place."""
        here = self.progress
        if self._agree(not all(bool(p.isfinite().all()) for p in self.model.parameters())):
            self._give_up(f"the weights are not finite after epoch {here.epoch + 1}, batch {here.update}")

    def _give_up(self, reason: str) -> NoReturn:
        kept = ""
        if self.folder is not None and self.progress.epoch:
            kept = f"; {self.folder.path / 'last'} holds the model of epoch {self.progress.epoch}"
        raise FloatingPointError(f"{reason}{kept}: choose a lower lr, a longer warm-up, clip_grad or another precision")

    def _between_batches(self, batch: Batch) -> None:
        self._note_skipped(batch)
        if self.accelerator.num_processes == 1:  # several have shares of different length, and stop afterwards
            self._stop_if_asked()

    def _note_skipped(self, batch: Batch) -> None:
        for reason in batch.skipped:
            if self.fatal:
                raise ImageError(reason)
            if reason not in self.progress.skipped:
                self.progress.skipped.append(reason)
                _logger.warning("skipped %s", reason)

    def _stop_if_asked(self) -> None:
        """After a signal to any process: write the state and end the run, all processes at the same place."""
        received = self.signals.received
        terminated, interrupted = self._sum(received == signal.SIGTERM, received == signal.SIGINT)
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

    def _gather_skipped(self) -> None:
        from accelerate.utils import gather_object

        self.progress.skipped = list(dict.fromkeys(gather_object(self.progress.skipped)))

    def _sum(self, *values: float) -> list[float]:
        """Over all processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return cast(Any, self.accelerator.reduce(tensor, "sum")).tolist()

    def _agree(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self._sum(float(flag))[0] > 0

    def _main_process_does(self, work: Any) -> None:
        """Do something to the run's folder in the main process; an error there is raised in all."""
        reason: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                work(self.folder)
            except OSError as error:
                reason = error
        if self._agree(reason is not None):
            raise reason or OSError("the main process could not write to the run's folder")

    def _bar(self, here: Progress) -> Any:
        return tqdm(
            total=self.batches.updates,
            initial=here.update,
            desc=f"epoch {here.epoch + 1}/{self.recipe.epochs}",
            unit="batch",
            leave=False,
            disable=not self.bars,
        )


@torch.no_grad()
def _validate(
    model: SRNN, loader: Iterable[Batch], accelerator: Accelerator, on_batch: Callable[[Batch], Any]
) -> dict[str, float]:
    """`val_loss` (cross-entropy of the last level), `val_top1` and `val_top5` in per cent.

    Args:
        model: is put in eval mode.
        loader: of this process's share.
        accelerator: over whose processes the figures are summed.
        on_batch: called with every batch.

    Raises:
        ValueError: if no image could be read.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # loss, right at first, right among five, images
    for batch in loader:
        on_batch(batch)
        if batch.images is None:
            continue
        images, targets = batch.images.to(accelerator.device), batch.targets.to(accelerator.device)
        with accelerator.autocast():
            logits = model(images)
        count = len(targets)
        right = [round(float(percent) * count / 100) for percent in accuracy(logits, targets, topk=(1, 5))]
        loss = F.cross_entropy(logits.float(), targets, reduction="sum").item()
        sums += torch.tensor([loss, *right, count], dtype=torch.float64)
    device_sums = sums.to(accelerator.device, torch.float64 if accelerator.device.type != "mps" else torch.float32)
    loss, top1, top5, count = accelerator.reduce(device_sums, "sum").tolist()  # pyright: ignore
    if count == 0:
        raise ValueError("no image of the validation split can be read")
    return {"val_loss": loss / count, "val_top1": 100 * top1 / count, "val_top5": 100 * top5 / count}

"""What a training leaves: metrics, the best model so far, and the state from which it goes on with the same bits."""

import contextlib
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from dmt import collapse
from utils import checkpoints
from utils.errors import UserError
from utils.files import sha256
from utils.metrics import ConfusionMatrix
from utils.tensors import snapshot


class Counts:
    """Sums over training steps, on the device, where adding to them makes nobody wait."""

    NAMES = ("unweighted_loss", "mean_weight", "disagreements", "student_wins", "pseudo_pixels", "valid_pixels")

    def __init__(self, num_classes, device):
        self._sums = torch.zeros(1 + len(self.NAMES), dtype=torch.float64, device=device)
        self._steps = torch.zeros((), device=device)  # all so far
        self._bad_step = torch.full((), math.inf, device=device)  # the first whose loss was not finite
        self.epoch = ConfusionMatrix(num_classes, device=device)

    def values(self, loss, statistics, labels):
        """What a part of a batch adds: loss and ``statistics``. Its predictions are counted against ``labels``."""
        self.epoch.update(labels, statistics["prediction"])
        return torch.stack([value.double() for value in (loss, *map(statistics.get, self.NAMES))])

    def add(self, sums):
        """Add the sums of a step, in place."""
        self._sums += sums
        self._steps += 1
        first = torch.minimum(self._bad_step, self._steps)
        self._bad_step.copy_(torch.where(torch.isfinite(sums[0]), self._bad_step, first))

    def take(self, processes):
        """(sums of all ``processes`` as floats, the first step whose loss was not finite or infinity); begins anew.

        This is where the host waits for the device.
        """
        sums = torch.cat([processes.sum(self._sums), self._bad_step.double()[None]]).tolist()
        bad_step = min(processes.gather(sums.pop()))
        self._sums.zero_()
        self._bad_step.fill_(math.inf)
        return sums, bad_step

    def go_on(self, step, epoch_matrix):
        """Go on after ``step`` steps, with what was counted in the epoch so far ((C, C) integers)."""
        self._steps.fill_(step)
        self.epoch.counts[:-2] = epoch_matrix.reshape(-1)


class Records:
    """Counts, logs and saves while a ``dmt.training.Trainer`` trains, on the first of its processes.

    ``steps`` is the ``data.batches.Steps``; ``stage`` the ``utils.runs.Stage`` that gets metrics, snapshots and the
    saved state (``save=False``: neither of the latter two); ``describe`` the dict of plain values that every checkpoint
    of this training carries; ``fingerprint`` that of everything that the result depends on: a saved state is good for
    no other. ``view`` is the ``dmt.live_view.LiveView`` of what is shown meanwhile. ``on_collapse`` says what happens
    when the loss is not finite. As a context around the steps it logs their beginning and end, and ends when everything
    is written.
    """

    def __init__(self, trainer, steps, stage, describe, fingerprint, view, on_collapse, save=True):
        self.trainer, self.steps, self.stage, self.save_at_all = trainer, steps, stage, save
        self.describe, self.fingerprint, self.view, self.on_collapse = describe, fingerprint, view, on_collapse
        self.processes = trainer.machine.processes
        self.step = 0
        self.best_miou, self.best_step, self.best_sha256 = -1.0, 0, ""
        self._logged, self._since = 0, 0.0  # the step of the last log entry, and since when the clock runs
        self._thread, self._saving = ThreadPoolExecutor(1), None  # the state that is being written, as a Future
        self._new_best = None  # what a new best model's checkpoint says, until it is saved

    def __enter__(self):
        self._write("start", {"total_steps": self.steps.total}, show=False)
        self._start_clock()
        self._began = self._since
        return self

    def __exit__(self, kind, *_):
        self._thread.shutdown()
        if kind is None:
            self._check_saving()
            seconds = round(time.monotonic() - self._began, 3)
            self._write("end", {"seconds": seconds, **self.trainer.machine.peak_memory()}, show=False)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def log(self, end_of_epoch):
        """Write the means of the steps since the last time, and of the epoch where it ends; notice a bad loss."""
        counts, precision = self.trainer.counts, self.trainer.machine.precision
        (loss, unweighted, weight, disagreements, wins, pseudo, _), bad_step = counts.take(self.processes)
        if math.isfinite(bad_step):
            self.processes.first(self._collapsed, int(bad_step))
        count = max(self.step - self._logged, 1)
        images = sum(len(self.steps.batch(step)) for step in range(self._logged, self.step))
        values = {"loss": loss / count, "unweighted_loss": unweighted / count, "mean_weight": weight / count,
                  "disagreeing_share": disagreements / max(pseudo, 1),
                  "student_wins_share": wins / max(disagreements, 1),
                  "lr": self.trainer.recipe.lr_at(self.step - 1, self.steps.total),
                  "images_per_second": round(images / (time.monotonic() - self._since), 2)}
        if precision.kind == "fp16":
            values.update(scale=precision.scaler.get_scale(), skipped_steps=int(precision.skipped.item()))
        self._write("train", values)
        if end_of_epoch:
            self.processes.sum(counts.epoch.counts)
            result = counts.epoch.compute()
            self._write("epoch", {"epoch": self.step // self.steps.per_epoch, "miou": result["miou"],
                                  "pixel_accuracy": result["pixel_accuracy"]})
            counts.epoch.counts.zero_()
        self.processes.first(self._check_saving)
        self._start_clock()

    def _start_clock(self):
        """Validating and saving are not training."""
        self._logged, self._since = self.step, time.monotonic()

    def validated(self, matrix):
        """Log the ``ConfusionMatrix`` of a validation, and remember the model if it is the best so far."""
        result = matrix.compute()
        iou = [None if math.isnan(value) else float(value) for value in result["iou"]]
        miou = 0.0 if math.isnan(result["miou"]) else float(result["miou"])
        self._write("validation", {"miou": miou, "pixel_accuracy": float(result["pixel_accuracy"]), "iou": iou})
        self.view.validated(matrix.matrix, iou, self.step, self.processes)
        if miou > self.best_miou:  # the first of equals stays
            self.best_miou, self.best_step = miou, self.step
            self._new_best = {"miou": miou, "iou": iou, "step": self.step}
        self._start_clock()

    def _write(self, kind, values, show=True):
        """A line of metrics.jsonl, and what TensorBoard may ``show``."""
        finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                  for name, value in values.items()}
        self.processes.first(self.stage.log_metrics, {"kind": kind, "step": self.step, **finite})
        if show and self.processes.is_first:
            self.view.numbers(kind, finite, self.step)

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, at_once):
        """Write the state as it is now, and before it a new best model's snapshot, while the training goes on.

        It waits for the writing of the state before, and, if it must be ``at_once``, of this one.
        """
        if self.save_at_all:
            state, best, self._new_best = self.state_dict(), self._new_best, None
            self.processes.first(self._start_saving, state, best, at_once)
        self._start_clock()

    def _start_saving(self, state, best, wait):
        self._check_saving(wait=True)
        self._saving = self._thread.submit(self._write_state, *snapshot(state), best)
        self._check_saving(wait)

    def _check_saving(self, wait=False):
        """Raise, once, what the writing of a state raised, if it has ended, or after a ``wait`` for its end."""
        if self._saving is not None and (wait or self._saving.done()):
            saving, self._saving = self._saving, None
            saving.result()

    def _write_state(self, state, arrived, best):
        arrived()
        if best is not None:
            path = self.stage.best(best["step"])
            checkpoints.save(path, {"model": state["model"], "optimizer": None, "lr_scheduler": None,
                                    **self.describe, **best})
            self.best_sha256 = sha256(path)
        state["best_sha256"] = self.best_sha256
        self.stage.save_state(state, state["best_step"])

    def _collapsed(self, step):
        with contextlib.suppress(UserError):  # of writing: the collapse is the greater news
            self._check_saving(wait=True)
        kept = self.save_at_all and self.best_step
        collapse.notice(collapse.not_finite(self.stage.name, step, self.steps.total, (
            f"; the best snapshot so far is {self.stage.best(self.best_step)}" if kept else "")), self.on_collapse)

    def state_dict(self):
        """Everything that the rest of the training depends on."""
        trainer = self.trainer
        return {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict(),
                "precision": trainer.machine.precision.state_dict(), "step": self.step, "best_miou": self.best_miou,
                "best_step": self.best_step, "best_sha256": self.best_sha256,
                "epoch_matrix": self.processes.sum(torch.from_numpy(trainer.counts.epoch.matrix)),
                "fingerprint": json.dumps(self.fingerprint)}

    def load_state_dict(self, state):
        """Go on where ``state_dict`` was taken; any number of processes can."""
        trainer = self.trainer
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.machine.precision.load_state_dict(state["precision"])
        self.step, self.best_miou, self.best_step = state["step"], state["best_miou"], state["best_step"]
        self.best_sha256, self.steps.start = state["best_sha256"], state["step"]
        matrix = state["epoch_matrix"]  # the first process counts on for all
        trainer.counts.go_on(self.step, matrix if self.processes.is_first else torch.zeros_like(matrix))

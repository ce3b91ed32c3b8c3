"""One training function for supervised and mutual training (DMT paper).

The caller says which images form the batches; everything else is the same: SGD, polynomial schedule, dynamic mutual
loss, validation at intervals, and the snapshot with the best validation mIoU as the result.
"""

import contextlib
import json
import math
import time
from dataclasses import dataclass

import torch

from data.confidence import GREY_LEVELS
from dmt.collapse import Collapse, not_finite
from dmt.loss import STOP, DynamicMutualLoss
from dmt.online import label_online
from models.deeplab import upsample
from utils import checkpoints
from utils.background import Background
from utils.distributed import ALONE
from utils.errors import UserError
from utils.files import sha256
from utils.metrics import ConfusionMatrix
from utils.replay import Replay
from utils.runs import peak_memory
from utils.transfer import Upload, snapshot


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training: SGD with momentum, lr * (1 - step / total)^power per step, and the loss's gammas.

    ``on_student_win`` is the loss's (see ``dmt.loss``). ``online`` is None, or the confidence above which the model
    learns its own decisions on the unlabelled images (see ``dmt.online``): then gammas and ``on_student_win`` are idle.
    """

    lr: float
    weight_decay: float = 0.0005
    gamma1: float = 0.0
    gamma2: float = 0.0
    on_student_win: str = STOP
    online: float | None = None
    momentum: float = 0.9
    power: float = 0.9
    val_num_steps: int = 500
    log_num_steps: int = 50
    save_num_steps: int = 500

    def lr_at(self, step, total):
        """Learning rate of ``step`` (from 0) of ``total``."""
        return self.lr * (1 - step / total) ** self.power


def stop(message):
    """What happens on a collapse unless the user wants to go on: raise ``Collapse``."""
    raise Collapse(message)


class Interrupted(Exception):
    """The training was asked to stop by ``signal`` (its number); its state is saved, the same command goes on there."""

    signal = None


class Trainer:
    """A training that can stop after any step and go on with the same bits.

    ``steps`` is the ``data.batches.Steps`` behind the loader; ``validate(model) -> ConfusionMatrix``; ``stage`` is the
    ``utils.runs.Stage`` that gets metrics, snapshots and the saved state (``save=False``: neither of the latter two);
    ``describe`` is the dict of plain values that every checkpoint of this training carries, ``fingerprint`` the one of
    everything that the result depends on: a saved state is good for no other. ``view`` is the
    ``dmt.live_view.LiveView`` of what is shown while it runs, or None. With ``graphs``, the steps of full batches are
    CUDA graphs on a GPU.

    ``processes`` are the ``utils.distributed.Processes`` that train together, with ``steps`` for this one. Only the
    first one's ``stage`` and ``view`` are used; where several save a state, any number can go on with it.
    """

    def __init__(self, model, recipe, steps, input_format, precision, device, stage, validate, describe, fingerprint,
                 *, save=True, view=None, stop_requested=lambda: False, on_collapse=stop, graphs=False,
                 processes=ALONE):
        self.recipe, self.steps, self.input_format, self.device = recipe, steps, input_format, torch.device(device)
        self.stage, self.validate, self.describe, self.fingerprint, self.save = (
            stage, validate, describe, fingerprint, save)
        self.view, self.stop_requested, self.on_collapse = view, stop_requested, on_collapse
        self.processes = processes
        self.loss = DynamicMutualLoss(recipe.gamma1, recipe.gamma2, on_student_win=recipe.on_student_win)
        optimizer = torch.optim.SGD(model.active_parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                    weight_decay=recipe.weight_decay, fused=self.device.type == "cuda" or None)
        self.precision = precision
        self.model, self.optimizer = precision.prepare(model, optimizer)
        self._replica = processes.replicate(self.model)
        self.levels = GREY_LEVELS.to(self.device)
        self.step = 0
        self.best_miou, self.best_step, self.best_sha256 = -1.0, 0, ""
        self._sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        self._bad_step = torch.zeros((), device=self.device)  # first step whose loss was not finite
        self._done = torch.zeros((), device=self.device)  # self.step, where the GPU can see it
        self._start_sums()
        self._start_clock()
        self._epoch = ConfusionMatrix(model.num_classes)
        self._upload, self._saving = Upload(self.device), Background()
        self._unwritten = None  # of the best model, where it is not on the disk: facts, weights, a wait for them
        self._learn_at = Replay(self._learn, self.device, graphs and processes.size == 1)
        # A graph reads the learning rate from the GPU's memory.
        self._lr = torch.zeros((), device=self.device) if graphs and self.device.type == "cuda" else None

    def run(self, loader, progress=iter):
        """Train to the end and return (best validation mIoU, its step). ``loader`` starts at batch ``self.step``.

        Raises ``Collapse`` when the loss is not finite, ``Interrupted`` when asked to stop.
        """
        with self._saving:
            return self._run(loader, progress)

    def _run(self, loader, progress):
        began = time.monotonic()
        self._note("start", total_steps=self.steps.total)
        self.model.train()
        self._start_clock()
        for batch in progress(loader):
            self._train_step(*batch)
            last = self.step == self.steps.total
            due = self.step % self.recipe.val_num_steps == 0 or last
            end_of_epoch = self.step % self.steps.per_epoch == 0
            stopping = self.processes.any(self.stop_requested())
            saving = self.save and (due or stopping or self.step % self.recipe.save_num_steps == 0)
            logging = due or end_of_epoch or saving or self.step % self.recipe.log_num_steps == 0
            if logging:
                self._log(end_of_epoch)  # before saving: a state whose loss is not finite is no good
                self.processes.first(self._saving.check)
            better = self._validate() if due else None
            if saving:
                self._start_saving(better, at_once=stopping or last)
            if logging:
                self._start_clock()  # validating and saving are not training
            if stopping or last:
                self.processes.first(self._saving.wait)
            if stopping and not last:
                raise Interrupted
        self._note("end", seconds=round(time.monotonic() - began, 3), **peak_memory(self.device))
        return self.best_miou, self.best_step

    def _train_step(self, images, labels, grey):
        """One step on this process's samples of a batch, as ``steps`` gives them. No host synchronization.

        images (N, h, w, 3) uint8 BGR; labels (N, h, w) uint8, 255 = ignored; grey (N, h, w) uint8, the confidences.
        """
        lr = self.recipe.lr_at(self.step, self.steps.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self._lr is None else self._lr.fill_(lr)
        self._learn_at(*self._upload(images, labels, grey), self.steps.parts(self.step))
        self._images += self.steps.samples(self.step)
        self.step += 1
        self._counted += 1

    def _learn(self, images, labels, grey, parts):
        """What the device does in a step: gradients part by part of the batch, each over the pixels of all the batch,
        and the optimizer's step. It may be recorded once and replayed, so it changes everything in place.
        """
        whole = self.processes.size == len(parts) == 1
        pixels = None if whole else self.processes.sum((labels != self.loss.ignore_index).count_nonzero())
        self.optimizer.zero_grad(set_to_none=True)
        sums, begin = torch.zeros_like(self._sums), 0
        for number, (samples, num_pseudo) in enumerate(parts, start=1):
            part, last = slice(begin, begin + samples), number == len(parts)
            begin += samples
            with contextlib.nullcontext() if last or self.processes.size == 1 else self._replica.no_sync():
                loss, statistics = self._losses(images[part], labels[part], grey[part], num_pseudo, pixels)
                self.precision.backward(loss, self.optimizer, last)
            sums += self._values(loss.detach(), statistics)
        if self.recipe.online is not None and not whole:
            self._divide_by_labelled(sums, pixels)
        self.precision.step(self.optimizer)
        self._add(sums)

    def _losses(self, images, labels, grey, num_pseudo, pixels):
        """The loss and its statistics of samples whose pseudo-labelled ones come first; ``pixels`` divides them."""
        confidence = self.levels[grey.int()]
        # Of no samples torch's SyncBatchNorm would send 16-bit zeros where the other processes send float32.
        with self.precision.autocast() if len(images) else contextlib.nullcontext():
            logits = self._replica(self.input_format.normalize(images))
        logits = upsample(logits, labels.shape[1:])
        if self.recipe.online is not None:  # from here on all is labelled, and counts fully
            labels, num_pseudo = label_online(logits, labels, num_pseudo, self.recipe.online), 0
        loss, statistics = self.loss(logits, labels, confidence, num_pseudo, pixels)
        self._epoch.update(labels, statistics["prediction"])
        return loss, statistics

    def _divide_by_labelled(self, sums, pixels):
        """Labels made on the fly: how many pixels have one is known only now, when ``pixels`` has divided everything."""
        factor = pixels / self.processes.sum(sums[-1].clone()).clamp(min=1)
        sums[:3] *= factor
        for parameter in self.model.active_parameters():
            parameter.grad.mul_(factor.float())

    def _start_sums(self):
        self._sums.zero_()
        self._bad_step.fill_(math.inf)
        self._counted = 0

    def _start_clock(self):
        self._images, self._since = 0, time.monotonic()

    @staticmethod
    def _values(loss, statistics):
        values = [loss] + [statistics[name] for name in ("unweighted_loss", "mean_weight", "disagreements",
                                                         "student_wins", "valid_pixels")]
        return torch.stack([value.double() for value in values])

    def _add(self, sums):
        self._sums += sums
        self._done += 1
        first = torch.minimum(self._bad_step, self._done)
        self._bad_step.copy_(torch.where(torch.isfinite(sums[0]), self._bad_step, first))

    def _log(self, end_of_epoch):
        """Read the sums of the steps since the last time, in one synchronization; stop when a loss was not finite."""
        sums, bad_step = self.processes.sum(self._sums), self.processes.min(self._bad_step)
        loss, unweighted, weight, disagreements, wins, valid, bad_step = (
            torch.cat([sums, bad_step.double()[None]]).tolist())
        if math.isfinite(bad_step):
            self.processes.first(self._collapsed, int(bad_step))
        count = max(self._counted, 1)
        values = {"loss": loss / count, "unweighted_loss": unweighted / count, "mean_weight": weight / count,
                  "disagreeing_share": disagreements / max(valid, 1), "student_wins_share": wins / max(disagreements, 1),
                  "lr": self.recipe.lr_at(self.step - 1, self.steps.total),
                  "images_per_second": round(self._images / (time.monotonic() - self._since), 2)}
        if self.precision.kind == "fp16":
            values.update(scale=self.precision.scale(), skipped_steps=int(self.precision.skipped.item()))
        self._write("train", values)
        self._start_sums()
        if end_of_epoch:
            self._epoch.restore(self.processes.sum_array(self._epoch.state()))
            result = self._epoch.compute()
            self._write("epoch", {"epoch": self.step // self.steps.per_epoch, "miou": result["miou"],
                                  "pixel_accuracy": result["pixel_accuracy"]})
            self._epoch.reset()

    def _collapsed(self, step):
        with contextlib.suppress(UserError):  # of writing: the collapse is the greater news
            self._saving.wait()
            if self._unwritten is not None:
                facts, weights, arrived = self._unwritten
                arrived()
                self._write_best(facts, weights)
                self._unwritten = None
        kept = f"; the best snapshot so far is {self.stage.best(self.best_step)}" if self.save and self.best_step else ""
        self.on_collapse(not_finite(self.stage.name, step, self.steps.total, kept))

    def _validate(self):
        """Returns what the snapshot says of itself if the model is the best so far, else None."""
        matrix = self.validate(self.model)
        result = matrix.compute()
        iou = [None if math.isnan(value) else float(value) for value in result["iou"]]
        miou = 0.0 if math.isnan(result["miou"]) else float(result["miou"])
        self._write("validation", {"miou": miou, "pixel_accuracy": float(result["pixel_accuracy"]), "iou": iou})
        if self.view is not None:
            self.view.gather(self.processes)
            self.processes.first(lambda: self.view.validated(matrix.matrix, iou, self.step))
        if miou <= self.best_miou:  # the first of equals stays
            return None
        self.best_miou, self.best_step = miou, self.step
        return {"miou": miou, "iou": iou, "step": self.step}

    def _start_saving(self, better, at_once):
        """Write the state as it is now while the training goes on, and before it the best model's snapshot if it is new.

        Where the last state is still being written this one is left out, unless it must be ``at_once``, and a new best
        model waits in memory for the next.
        """
        busy = not at_once and self.processes.first(lambda: self._saving.busy)
        if better is not None:
            copied = busy and self.processes.is_first
            self._unwritten = better, *(snapshot(self.model.state_dict()) if copied else (None, None))
        if busy:
            return
        state, unwritten, self._unwritten = self.state_dict(), self._unwritten, None
        self.processes.first(lambda: self._saving.start(self._write_state, *snapshot(state), unwritten))

    def _write_state(self, state, arrived, unwritten):
        arrived()
        if unwritten is not None:
            facts, weights, _ = unwritten
            self._write_best(facts, weights or state["model"])
        state["best_sha256"] = self.best_sha256
        self.stage.save_state(state, state["best_step"])

    def _write_best(self, facts, weights):
        path = self.stage.best(facts["step"])
        checkpoints.save_weights(path, weights, **self.describe, **facts)
        self.best_sha256 = sha256(path)

    def _write(self, kind, values):
        finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                  for name, value in values.items()}
        self._note(kind, **finite)
        if self.view is not None and self.processes.is_first:
            self.view.numbers(kind, finite, self.step)

    def _note(self, kind, **values):
        self.processes.first(lambda: self.stage.log_metrics(kind=kind, step=self.step, **values))

    def state_dict(self):
        """Everything that the rest of the training depends on."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "precision": self.precision.state_dict(), "step": self.step, "best_miou": self.best_miou,
                "best_step": self.best_step, "best_sha256": self.best_sha256, "sums": self._sums,
                "bad_step": self._bad_step, "counted": self._counted,
                "epoch_matrix": torch.from_numpy(self.processes.sum_array(self._epoch.state())),
                "fingerprint": json.dumps(self.fingerprint)}

    def load_state_dict(self, state):
        """Go on where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
        self.step, self.best_miou, self.best_step = state["step"], state["best_miou"], state["best_step"]
        self.best_sha256 = state["best_sha256"]
        self.steps.start = self.step
        self._sums.copy_(state["sums"])
        self._bad_step.copy_(state["bad_step"])
        self._done.fill_(self.step)
        self._counted = state["counted"]
        if self.processes.is_first:  # the others' counts are in it
            self._epoch.restore(state["epoch_matrix"])

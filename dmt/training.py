"""Training: one step and one loop for supervised and mutual training (DMT paper).

The caller says which images form the batches; everything else is the same: SGD, polynomial schedule, dynamic mutual
loss, validation at intervals, and the snapshot with the best validation mIoU as the result.
"""

import contextlib
from dataclasses import dataclass

import torch

from data.confidence import GREY_LEVELS
from dmt.loss import STOP, DynamicMutualLoss, label_online
from models.deeplab import upsample
from utils.tensors import Replay, upload


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training: SGD with momentum, lr * (1 - step / total)^power per step, and the loss's gammas.

    ``on_student_win`` is the loss's (see ``dmt.loss``). ``online`` is None, or the confidence above which the model
    learns its own decisions on the unlabelled images (see ``dmt.loss.label_online``): then gammas and
    ``on_student_win`` are idle.
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


class Trainer:
    """A network that learns: the step of DMT, on the ``dmt.session.Machine``.

    ``counts`` are the ``dmt.records.Counts`` of what its steps come to. On a GPU the steps of full batches are CUDA
    graphs where the machine wants them.
    """

    def __init__(self, model, recipe, machine, input_format, counts):
        self.recipe, self.machine, self.input_format, self.counts = recipe, machine, input_format, counts
        self.loss = DynamicMutualLoss(recipe.gamma1, recipe.gamma2, on_student_win=recipe.on_student_win)
        on_gpu = machine.device.type == "cuda"
        optimizer = torch.optim.SGD(model.active_parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                    weight_decay=recipe.weight_decay, fused=on_gpu or None)
        self.model, self.optimizer = machine.precision.prepare(model, optimizer)
        self._replica = machine.processes.replicate(self.model)
        self._levels = GREY_LEVELS.to(machine.device)
        self._learn_or_replay = Replay(self._learn, machine.device, machine.graphs and machine.processes.size == 1)
        # A graph reads the learning rate from the GPU's memory.
        self._lr = torch.zeros((), device=machine.device) if machine.graphs and on_gpu else None

    def step(self, images, labels, grey, parts, lr):
        """One step on this process's samples of a batch, with the learning rate ``lr``. No host synchronization.

        images (N, h, w, 3) uint8 BGR; labels (N, h, w) uint8, 255 = ignored; grey (N, h, w) uint8, the confidences.
        ``parts`` are pairs (samples, pseudo-labelled ones, which come first), see ``data.batches.Steps.parts``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self._lr is None else self._lr.fill_(lr)
        self._learn_or_replay(*upload(self.machine.device, images, labels, grey), parts)

    def _learn(self, images, labels, grey, parts):
        """What the device does in a step: gradients part by part of the batch, each over the pixels of all the batch,
        and the optimizer's step. It may be recorded once and replayed, so it changes everything in place.
        """
        precision, processes, online = self.machine.precision, self.machine.processes, self.recipe.online
        whole = processes.size == len(parts) == 1
        pixels = None if whole else processes.sum((labels != self.loss.ignore_index).count_nonzero())
        self.optimizer.zero_grad(set_to_none=True)
        sums = begin = 0
        for number, (samples, num_pseudo) in enumerate(parts, start=1):
            part, last = slice(begin, begin + samples), number == len(parts)
            begin += samples
            target, confidence = labels[part], self._levels[grey[part].int()]
            with contextlib.nullcontext() if last or processes.size == 1 else self._replica.no_sync():
                # Of no samples torch's SyncBatchNorm would send 16-bit zeros where the other processes send float32.
                with precision.autocast() if samples else contextlib.nullcontext():
                    logits = self._replica(self.input_format.normalize(images[part]))
                logits = upsample(logits, labels.shape[1:])
                if online is not None:  # from here on all is labelled, and counts fully
                    target, num_pseudo = label_online(logits, target, num_pseudo, online), 0
                loss, statistics = self.loss(logits, target, confidence, num_pseudo, pixels)
                precision.backward(loss, self.optimizer, last)
            sums += self.counts.values(loss.detach(), statistics, target)
        if online is not None and not whole:  # how many pixels have a label is known only now
            factor = pixels / processes.sum(sums[-1].clone()).clamp(min=1)
            sums[:3] *= factor
            for parameter in self.model.active_parameters():
                parameter.grad.mul_(factor.float())
        precision.step(self.optimizer)
        self.counts.add(sums)


class Interrupted(Exception):
    """The training was asked to stop by ``signal`` (its number); its state is saved, the same command goes on there."""

    signal = None


def train(trainer, steps, loader, records, validate, asked=()):
    """Train to the end and return (best validation mIoU, its step).

    ``loader`` gives the batches of ``steps`` (``data.batches.Steps``) from ``records.step`` on; ``records`` are the
    ``dmt.records.Records``, which count, log and save; ``validate() -> ConfusionMatrix``; ``asked``
    is not empty once the training is asked to stop.
    Raises ``UserError`` when the loss is not finite, ``Interrupted`` when asked to stop.
    """
    recipe, processes = trainer.recipe, trainer.machine.processes
    trainer.model.train()
    with records:
        for batch in loader:
            trainer.step(*batch, steps.parts(records.step), recipe.lr_at(records.step, steps.total))
            records.step += 1
            last = records.step == steps.total
            due = records.step % recipe.val_num_steps == 0 or last
            end_of_epoch = records.step % steps.per_epoch == 0
            stopping = processes.any(bool(asked))
            saving = due or stopping or records.step % recipe.save_num_steps == 0
            if due or end_of_epoch or saving or records.step % recipe.log_num_steps == 0:
                records.log(end_of_epoch)  # before saving: a state whose loss is not finite is no good
            if due:
                records.validated(validate())
            if saving:
                records.save(at_once=stopping or last)
            if stopping and not last:
                raise Interrupted
    return records.best_miou, records.best_step

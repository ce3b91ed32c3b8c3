"""A training as a stage: how it begins, is skipped when it is finished, goes on after an interruption, and ends."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data import images
from data.batches import LABELED, PSEUDO, Steps, TrainingImages
from data.datasets import WholeImages
from data.lists import evenly_spaced, names_digest
from data.store import PseudoLabelStore
from dmt import collapse, training
from dmt.evaluation import evaluate
from dmt.live_view import LiveView
from dmt.loss import STOP
from dmt.prediction import Forward
from dmt.records import Counts, Records
from dmt.training import Interrupted, Recipe, Trainer
from models.deeplab import average_parts, synchronize
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import sha256
from utils.runs import Stage, software

_SHOWN = 4  # validation images in TensorBoard
_ECHO = 5  # seconds in which a signal comes to each of several processes more than once: torchrun passes on its own


@dataclass(frozen=True)
class Training:
    """A training stage. ``batch_pseudo`` is None for a supervised one; else labels are read from ``pseudo_dir``, unless
    ``recipe.online`` says that they are made on the fly. Each batch is computed in ``accumulate`` parts.

    ``start`` is the checkpoint to start from, or None; then ``weights`` are those of the backbone
    (``models.weights.load_imagenet_weights``). ``config`` (plain values) is written beside the result for the reader.
    """

    name: str
    output_dir: Path
    recipe: Recipe
    epochs: int
    batch_labeled: int
    batch_pseudo: int | None
    seed: int
    pseudo_dir: Path | None = None
    augment_pseudo: bool = True
    tiny_validation: bool = False
    accumulate: int = 1
    start: Path | None = None
    weights: str | None = None
    save: bool = True
    redo: bool = False
    config: dict = dataclasses.field(default_factory=dict)


def run(setting, plan):
    """Run the stage ``plan`` (a ``Training``) in the ``dmt.session.Setting`` unless it is finished.

    Raises ``Interrupted`` when a signal stopped it.
    """
    data = setting.data
    labeled, pseudo, store, manifest = data.labeled(*setting.split), [], None, None
    validation = data.validation(plan.tiny_validation)
    lists = {"labeled_names": names_digest(labeled), "validation_names": names_digest(validation)}
    if plan.batch_pseudo is not None:
        pseudo = data.unlabeled(*setting.split)
        if plan.recipe.online is None:
            store = PseudoLabelStore(plan.pseudo_dir)
            manifest = _labels_of(setting, store, pseudo)
        else:
            lists["unlabeled_names"] = names_digest(pseudo)
    fingerprint = _fingerprint(setting, plan, manifest, lists)
    processes = setting.machine.processes
    processes.agree(json.dumps(fingerprint, sort_keys=True), f"the numbers, lists or files of {plan.name}")

    stage = Stage(plan.output_dir, plan.name)
    with stage if processes.is_first else contextlib.nullcontext():
        result = processes.first(stage.result, fingerprint) if plan.save and not plan.redo else None
        if result is None:
            processes.first(_check, data.spec, labeled, pseudo, store, validation)
            dataset = TrainingImages(data.spec, plan.seed, labeled, pseudo, store, plan.augment_pseudo)
            result = _train(setting, plan, stage, dataset, validation, fingerprint)
            print(f"{plan.name}: best validation mIoU {100 * result['miou']:.2f} % at step {result['step']}")
        else:
            print(f"{plan.name}: already finished, mIoU {100 * result['miou']:.2f} %")
        collapse.notice(collapse.fall(plan.name, result["start_miou"], result["miou"]), setting.on_collapse)


def _labels_of(setting, store, samples):
    """The manifest of ``store``, if it is whole and of the unlabelled ``samples``; ``UserError`` otherwise."""
    manifest, (split, split_id), dataset = store.read_manifest(), setting.split, setting.data.spec.name
    if manifest.get("dataset") != dataset or manifest.get("names_sha256") != names_digest(samples):
        raise UserError(f"the pseudo labels in {store.folder} are of {manifest.get('dataset')}, split "
                        f"{manifest.get('split')}, id {manifest.get('split_id')}, not of {dataset}, split {split}, "
                        f"id {split_id}; label this split or correct --pseudo-dir")
    return manifest


def _check(spec, labeled, pseudo, store, validation):
    """Raise ``UserError`` where a file that the training reads is missing or wrong."""
    for sample in pseudo if store is not None else ():
        path = store.label_path(sample.name)
        if not path.is_file():
            raise UserError(f"the pseudo label {path} is missing; run the labelling again")
    images.check_present(pseudo)
    images.check_pairs(spec, labeled)
    images.check_pairs(spec, validation)
    trained = {sample.image for sample in (*labeled, *pseudo)}
    seen = [sample.image for sample in validation if sample.image in trained]
    if seen:
        print(f"warning: {len(seen)} of {len(validation)} images of the validation are trained on, {seen[0]} for one; "
              "their mIoU says nothing of other images", file=sys.stderr)


def _steps(plan, dataset, network, processes):
    """Which images form each step: pseudo-labelled ones first, which then set the length of an epoch.

    Raises ``UserError`` where batch normalization would get one image with one feature; it needs two.
    """
    streams = [(kind, len(dataset.samples[kind]), size) for kind, size in
               ((PSEUDO, plan.batch_pseudo), (LABELED, plan.batch_labeled)) if size]
    steps = Steps(streams, plan.seed, plan.epochs, plan.accumulate, processes.rank, processes.size)
    crop = dataset.crop
    if max(crop) <= network.traits.output_stride and (
            min(len(steps.batch(step)) for step in range(steps.per_epoch)) // steps.accumulate < 2):
        raise UserError(f"--crop-size {crop[0]} {crop[1]} leaves one feature an image, and a batch or part of one has "
                        "one image, but batch normalization needs two; give a larger crop, or a batch size with which "
                        "the last batch has more")
    return steps


def _train(setting, plan, stage, dataset, validation, fingerprint):
    """Train from the beginning, or from where an interrupted training of the stage stopped; returns its result."""
    spec, machine, network = setting.data.spec, setting.machine, setting.network
    processes = machine.processes
    steps = _steps(plan, dataset, network, processes)
    if not processes.is_first:
        processes.wait()  # while the first one downloads
    model = network.build(machine.device, plan.start, plan.weights, plan.seed)
    if processes.is_first:
        processes.wait()
    average_parts(model, plan.accumulate)
    if processes.size > 1:
        synchronize(model)
    elif machine.compiled:
        model.compile_blocks()
    state = processes.first(stage.begin, plan.config, fingerprint, plan.save, plan.redo)
    step = state["step"] if state else 0
    view = LiveView(stage.folder / "tensorboard" if processes.is_first else None, step, spec,
                    evenly_spaced(validation, _SHOWN))
    trainer = Trainer(model, plan.recipe, machine, network.input_format, Counts(model.num_classes, machine.device))
    records = Records(trainer, steps, stage, _described(network, spec.crop, fingerprint), fingerprint, view,
                      setting.on_collapse, plan.save)
    if state:
        records.load_state_dict(state)
    forward = Forward(trainer.model, network.input_format, machine)
    whole_images = machine.loader(WholeImages(spec), machine.whole_batches(validation))
    validate = functools.partial(evaluate, trainer.model, forward, whole_images, machine, view.see)
    loader = progress_bar(machine.loader(dataset, steps), f"train {plan.name}", "step")
    asked = _listen(processes)
    print(f"{plan.name}: {len(dataset.samples[LABELED])} labelled and {len(dataset.samples[PSEUDO])} pseudo-labelled "
          f"images, {plan.epochs} epochs of {steps.per_epoch} steps on {machine.device} in {machine.precision.kind}"
          + (f", {processes.size} processes" if processes.size > 1 else "")
          + (f", batches in {plan.accumulate} parts" if plan.accumulate > 1 else "")
          + (f", going on from step {step}" if step else ""), flush=True)
    try:
        miou, best_step = training.train(trainer, steps, loader, records, validate, asked)
    except Interrupted as interrupted:
        kept = "its state is saved, the same command goes on from there" if plan.save else "nothing is saved"
        print(f"{plan.name}: stopped at step {records.step}; {kept}", file=sys.stderr)
        interrupted.signal = max(processes.gather(asked[0] if asked else 0))
        raise
    finally:
        view.close()
    start_miou = network.facts.get("miou") if plan.start else None  # --new-head knows nothing of what was before
    result = {"miou": miou, "step": best_step, "start_miou": start_miou,
              "skipped_steps": int(machine.precision.skipped.item())}
    processes.first(stage.finish, result, fingerprint, plan.save)
    if result["skipped_steps"]:
        print(f"{plan.name}: {result['skipped_steps']} of {steps.total} steps skipped by the loss scaler")
    return result


def _listen(processes):
    """The signals that ask to stop, as a list that grows; asked again, it is without saving, but not within a write."""
    asked, first = [], time.monotonic()

    def ask_to_stop(number, _):
        nonlocal first
        now = time.monotonic()
        if not asked:
            first = now
        elif processes.size == 1 or now > first + _ECHO:
            raise KeyboardInterrupt
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    return asked


def _fingerprint(setting, plan, manifest, lists):
    """Everything that the result of a training depends on, but for the contents of the images, as plain values.

    The keys are the options' names, since a difference is told to the user in them.
    """
    recipe, machine, weights = plan.recipe, setting.machine, plan.weights
    if not plan.start and weights and weights != "none":
        weights = sha256(weights)
    return json.loads(json.dumps({
        "options": {
            "state": 2 if plan.batch_pseudo is None else 1, "train_set": setting.split[0], "sets_id": setting.split[1],
            "epochs": plan.epochs, "batch_size_labeled": plan.batch_labeled, "batch_size_pseudo": plan.batch_pseudo,
            "lr": recipe.lr, "weight_decay": recipe.weight_decay, "gamma1": recipe.gamma1, "gamma2": recipe.gamma2,
            "on_student_win": None if recipe.on_student_win == STOP else recipe.on_student_win, "online": recipe.online,
            "accumulate": None if plan.accumulate == 1 else plan.accumulate, "seed": plan.seed,
            "val_num_steps": recipe.val_num_steps, "batch_size_labeling": machine.batch_size,
            "no_aug": not plan.augment_pseudo},
        "network": setting.network.identity(), "precision": machine.precision.kind, "device": machine.device.type,
        "dataset": {**dataclasses.asdict(setting.data.spec), "root": None, "lists_root": None,
                    "max_pixels": None},
        "lists": lists,
        "start": sha256(plan.start) if plan.start else weights, "pseudo_labels": manifest}))


def _described(network, crop, fingerprint):
    """What the checkpoints carry beside the weights, as plain values that depend on neither time nor place."""
    recipe = {**{key: value for key, value in fingerprint["options"].items() if value is not None}, "crop": list(crop),
              **{key: fingerprint[key] for key in ("precision", "device", "start")}}
    lists, labels = dict(fingerprint["lists"]), fingerprint["pseudo_labels"]
    if labels is not None:
        lists.update(unlabeled_names=labels["names_sha256"],
                     pseudo_labels=hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest())
    return dataclasses.replace(network, facts={"recipe": recipe, "lists": lists, "software": software()}).values()

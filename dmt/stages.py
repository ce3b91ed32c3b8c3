"""The two stages that write: training and labelling, from plain values to the files they leave.

Both look first at what an earlier start has left: a finished stage is only verified, an interrupted one goes on.
"""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


from data import batches, datasets, images
from data.lists import names_digest
from data.store import PseudoLabelStore
from dmt import collapse, labeling, training
from dmt.live_view import LiveView, spread
from dmt.loss import STOP
from dmt.records import Counts, Records
from dmt.session import Data, Machine, Network
from dmt.training import Interrupted, Recipe, Trainer
from models import batch_norm
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import locked, make_folder, sha256, sync, write_json
from utils.runs import Stage, difference, peak_memory

_SHOWN = 4  # validation images in TensorBoard
_ECHO = 5  # seconds in which a signal comes to each of several processes more than once: torchrun passes on its own


@dataclass(frozen=True)
class Setting:
    """What every stage works with: ``dmt.session``'s data, machine and network, and (split, id) of the image lists.

    ``on_collapse`` is called with the message when a collapse is noticed (see ``dmt.collapse``).
    """

    data: Data
    machine: Machine
    network: Network
    split: tuple
    on_collapse: Callable = collapse.stop

    def source(self):
        """Plain values that tell whose pseudo labels these are."""
        spec = self.data.spec
        return {"dataset": spec.name, "split": self.split[0], "split_id": self.split[1],
                "test_size": list(spec.test_size), "network": self.network.identity()}


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


def train(setting, plan):
    """Run the stage ``plan`` (a ``Training``) unless it is finished. Raises ``Interrupted`` when a signal stopped it."""
    data = setting.data
    labeled, pseudo, store, manifest = data.labeled(*setting.split), [], None, None
    validation = data.validation(plan.tiny_validation)
    lists = {"labeled": labeled, "validation": validation}
    if plan.batch_pseudo is not None:
        pseudo = data.unlabeled(*setting.split)
        if plan.recipe.online is None:
            store = PseudoLabelStore(plan.pseudo_dir)
            manifest = _labels_of(setting, store, pseudo)
        else:
            lists["unlabeled"] = pseudo
    fingerprint = _fingerprint(setting, plan, manifest, lists)
    processes = setting.machine.processes
    processes.agree(json.dumps(fingerprint, sort_keys=True), f"the numbers, lists or files of {plan.name}")

    def check():
        if store is not None:
            missing = [path for path in (store.label_path(sample.name) for sample in pseudo) if not path.is_file()]
            if missing:
                raise UserError(f"the pseudo label {missing[0]} is missing; run the labelling again")
        images.check_present(pseudo)
        images.check_pairs(data.spec, labeled)
        images.check_pairs(data.spec, validation)

    with processes.held_by_first(lambda: Stage(plan.output_dir, plan.name)) as stage:
        result = processes.first(lambda: stage.result(fingerprint)) if plan.save and not plan.redo else None
        if result is None:
            processes.first(check)
            dataset = datasets.TrainingImages(data.spec, plan.seed, labeled, pseudo, store, plan.augment_pseudo)
            result = _run(setting, plan, stage, dataset, validation, fingerprint)
            print(f"{plan.name}: best validation mIoU {100 * result['miou']:.2f} % at step {result['step']}")
        else:
            print(f"{plan.name}: already finished, mIoU {100 * result['miou']:.2f} %")
        fallen = collapse.fall(plan.name, result["start_miou"], result["miou"])
        if fallen:
            setting.on_collapse(fallen)


def _labels_of(setting, store, samples):
    """The manifest of ``store``, if it is whole and of the unlabelled ``samples``; ``UserError`` otherwise."""
    manifest, (split, split_id), dataset = store.read_manifest(), setting.split, setting.data.spec.name
    if manifest.get("dataset") != dataset or manifest.get("names_sha256") != names_digest(samples):
        raise UserError(f"the pseudo labels in {store.folder} are of {manifest.get('dataset')}, split "
                        f"{manifest.get('split')}, id {manifest.get('split_id')}, not of {dataset}, split {split}, "
                        f"id {split_id}; label this split or correct --pseudo-dir")
    return manifest


def _steps(plan, dataset, processes):
    """Which images form each step: pseudo-labelled ones first, which then set the length of an epoch."""
    kinds = [(datasets.PSEUDO, plan.batch_pseudo)] if plan.batch_pseudo is not None else []
    if plan.batch_labeled:
        kinds.append((datasets.LABELED, plan.batch_labeled))
    streams = [batches.Stream(kind, len(dataset.samples[kind]), size, plan.seed) for kind, size in kinds]
    return batches.Steps(streams, plan.epochs, plan.accumulate, processes.rank, processes.size)


def _check_parts(steps, crop, stride):
    """Raise ``UserError`` where batch normalization would get one image with one feature; it needs two."""
    if max(crop) > stride:
        return
    fewest = min(steps.samples(step) for step in range(steps.per_epoch))
    if fewest // steps.accumulate < 2:
        raise UserError(f"--crop-size {crop[0]} {crop[1]} leaves one feature an image, and a batch or part of one has one "
                        "image, but batch normalization needs two; give a larger crop, or a batch size with which the "
                        "last batch has more")


def _run(setting, plan, stage, dataset, validation, fingerprint):
    """Train from the beginning, or from where an interrupted training of the stage stopped; returns its result."""
    machine, network, processes = setting.machine, setting.network, setting.machine.processes
    steps = _steps(plan, dataset, processes)
    _check_parts(steps, network.spec.crop, network.traits.output_stride)
    model, carried = processes.after_first(
        lambda: network.build(machine.device, plan.start, plan.weights, plan.seed))
    batch_norm.average_parts(model, plan.accumulate)
    if processes.size == 1:
        machine.ready(model)
    else:
        batch_norm.synchronize(model)

    def begin():
        state = stage.interrupted_state(fingerprint) if plan.save and not plan.redo else None
        stage.write_config({**plan.config, "fingerprint": fingerprint})
        stage.start_metrics(state["step"] if state else 0)
        return state

    state = processes.first(begin)
    step = state["step"] if state else 0
    board = stage.tensorboard(step) if processes.is_first else None
    view = LiveView(board, setting.data.spec, spread(len(validation), _SHOWN))
    validate = machine.validator(setting.data, validation, network.input_format, progress_bar("validate", "batch"),
                                 view.see)
    trainer = Trainer(model, plan.recipe, machine, network.input_format, Counts(model.num_classes, machine.device))
    records = Records(trainer, steps, stage, network.describe(fingerprint), fingerprint, view, setting.on_collapse,
                      plan.save)
    if state:
        records.load_state_dict(state)
    loader = progress_bar(f"train {plan.name}", "step")(
        machine.loader(dataset, dataset.collate, batch_sampler=steps))
    asked = _listen(processes)
    print(f"{plan.name}: {len(dataset.samples['labeled'])} labelled and {len(dataset.samples['pseudo'])} pseudo-labelled "
          f"images, {plan.epochs} epochs of {steps.per_epoch} steps on {machine.device} in {machine.precision.kind}"
          + (f", {processes.size} processes" if processes.size > 1 else "")
          + (f", batches in {plan.accumulate} parts" if plan.accumulate > 1 else "")
          + (f", going on from step {step}" if step else ""), flush=True)
    try:
        miou, best_step = training.train(trainer, steps, loader, records, validate, lambda: bool(asked))
    except Interrupted as interrupted:
        kept = "its state is saved, the same command goes on from there" if plan.save else "nothing is saved"
        print(f"{plan.name}: stopped at step {records.step}; {kept}", file=sys.stderr)
        interrupted.signal = max(processes.gather(asked[0] if asked else 0))
        raise
    finally:
        if board is not None:
            board.close()
    result = {"miou": miou, "step": best_step, "start_miou": carried.get("miou"),
              "skipped_steps": int(machine.precision.skipped.item())}
    processes.first(lambda: stage.finish(result, fingerprint, plan.save))
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
        "dataset": {**dataclasses.asdict(setting.data.spec), "root": None, "lists_root": None},
        "lists": {f"{name}_names": names_digest(samples) for name, samples in lists.items()},
        "start": sha256(plan.start) if plan.start else weights, "pseudo_labels": manifest}))


def label(setting, folder, checkpoint, old, rules, redo=False):
    """Label the unlabelled images with ``checkpoint`` into ``folder``, with PLE if there is an ``old`` one.

    ``rules`` are the ``dmt.labeling.LabelingRules``.
    """
    data, machine, began = setting.data, setting.machine, time.monotonic()
    processes, samples = machine.processes, data.unlabeled(*setting.split)
    processes.first(images.check_present, samples)
    processes.first(make_folder, folder)
    if rules.previous_statistics == labeling.BATCH and max(data.spec.test_size) <= setting.network.traits.output_stride:
        raise UserError("--previous-statistics batch: this --test-size leaves one feature an image, but batch "
                        "normalization needs two; give a larger one")
    store = PseudoLabelStore(folder, data.spec.palette)
    source = {**setting.source(), "names_sha256": names_digest(samples), "batch_size": machine.batch_size}
    sources = {file: {**source, "checkpoint_sha256": sha256(file)} for file in (checkpoint, old) if file}
    expected = {**sources[checkpoint], "rules": rules.values(), "previous": old and old.name,
                "previous_sha256": old and sources[old]["checkpoint_sha256"]}
    processes.agree(expected, f"the numbers, lists or files of the labelling in {folder}")

    with processes.held_by_first(lambda: locked(folder / ".lock", f"the folder of pseudo labels {folder}")):
        shares = None if redo else processes.first(_finished_labeling, store, expected, samples)
        done = shares is not None
        if not done:
            processes.first(store.begin, sources[checkpoint], redo)
            previous = old and (old, processes.first(_store_of, folder.parent, sources[old]))
            try:
                thresholds, shares = labeling.label(setting, samples, store, checkpoint, previous, rules)
            except KeyboardInterrupt:
                print(f"labelling stopped; the predictions so far are kept in {folder}, the same command goes on with them",
                      file=sys.stderr)
                raise
            processes.each_machine(sync)  # all is on the disks when the manifest says so
            manifest = {**expected, "checkpoint": checkpoint.name, "images": len(samples), "labeled_share": shares,
                        "thresholds": [float(value) for value in thresholds]}
            processes.first(write_json, folder / "timing.json", {  # the manifest has to stay the same bytes
                "seconds": round(time.monotonic() - began, 2), "images": len(samples), **peak_memory(machine.device)})
            processes.first(store.write_manifest, manifest)
    ple = f", {100 * shares['after']:.2f} % after PLE ({100 * shares['changed']:.2f} % changed)" if old else ""
    print(f"{'already labelled:' if done else 'labelled'} {len(samples)} images in {folder}: "
          f"{100 * shares['before']:.2f} % of the pixels{ple}")


def _finished_labeling(store, expected, samples):
    """The shares of labelled pixels when ``store`` holds the finished labelling ``expected``, else None.

    Says on standard output why a labelling that had finished is made anew, or which of its files are damaged.
    """
    if not (store.folder / "manifest.json").is_file():
        return None
    try:
        manifest = store.read_manifest()
        reason = difference({key: manifest.get(key) for key in expected}, expected)
        damaged = [] if reason else store.damaged([sample.name for sample in samples])
        if damaged:
            reason = f"{damaged[0]} is missing or damaged" + (f" and {len(damaged) - 1} more" if damaged[1:] else "")
    except UserError as error:
        reason = str(error)
    if reason is None:
        return manifest["labeled_share"]
    print(f"{store.folder}: labelled anew, since {reason}", flush=True)
    return None


def _store_of(folder, source):
    """The store beneath ``folder`` whose logits come from ``source``, or None."""
    stores = (PseudoLabelStore(path.parent) for path in sorted(folder.glob("*/logits.json")))
    return next((store for store in stores if store.has_logits_of(source)), None)

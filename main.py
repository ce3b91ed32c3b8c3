#!/usr/bin/env python3
"""One stage of DMT+PLE: train (supervised or on pseudo labels), label the unlabelled images, or test."""

import dataclasses
import json
import shutil
import signal
import sys
from pathlib import Path

from utils.errors import UserError, reports_user_errors
from utils.options import parse_options


@reports_user_errors
def main(arguments=None):
    """Parse the command line and run the stage it asks for."""
    options = parse_options(arguments)
    job = Job(options)
    if options.check:
        job.check()
    elif options.labeling:
        job.label()
    elif options.state == 3:
        job.test()
    else:
        job.train(mutual=options.state == 1)


class Job:
    """The stage that the options describe. Nothing below this class sees the options."""

    def __init__(self, options):
        from data import images
        from dmt.session import Data, Machine, Network, choose_device
        from utils.precision import choose_precision

        self.options = options
        images.limit_pixels(options.max_pixels)
        self.data = Data(options.dataset, options.data_root, options.lists_dir, options.crop_size, options.test_size,
                         options.allow_links)
        self.spec = self.data.spec
        device = choose_device(options.device)
        precision = choose_precision(options.mixed_precision, options.amp_backend, options.amp_dtype, device)
        workers = options.workers
        if workers is None:
            import torch
            workers = 0 if device.type == "cpu" else min(8, torch.get_num_threads())
        self.machine = Machine(device, precision, workers, options.batch_size_labeling)
        self.network = Network(options.backbone, options.aspp_branches, options.coco, self.spec)

    def train(self, mutual):
        """Supervised training, or mutual training on the pseudo labels of another arm and the labelled images."""
        from data import batches, datasets, images
        from dmt import collapse
        from utils.runs import Stage

        options, split = self.options, (self.options.train_set, self.options.sets_id)
        streams, names, pseudo_names, store, manifest = [], self.data.labeled(*split), [], None, None
        if mutual:
            pseudo_names, store, manifest = self._pseudo_labeled()
            streams.append(batches.Stream(datasets.PSEUDO, len(pseudo_names), options.batch_size_pseudo, options.seed))
        if options.batch_size_labeled:
            streams.append(batches.Stream(datasets.LABELED, len(names), options.batch_size_labeled, options.seed))
        elif not mutual:
            raise UserError("--batch-size-labeled 0: supervised training needs labelled images; give at least 1")
        val_names = self.data.validation(options.valtiny)
        start = self._checkpoint("continue_from") if options.continue_from else None
        fingerprint = self._fingerprint(start, manifest, labeled=names, validation=val_names)
        with Stage(options.output_dir, options.exp_name or f"{self.spec.name}-{'-'.join(split)}") as stage:
            result = None if options.do_not_save or options.redo else stage.result(fingerprint)
            if result is None:
                if store is not None:
                    store.check_files(pseudo_names)
                    images.check_present(self.data.images(pseudo_names))
                images.check_pairs(self.spec, [*self.data.pairs(names), *self.data.pairs(val_names, "val")])
                dataset = datasets.TrainingImages(self.spec, self.data.root, self.spec.crop, options.seed, names,
                                                  pseudo_names, store, augment_pseudo=not options.no_aug)
                result = self._run_training(stage, batches.Steps(streams, options.epochs), dataset, val_names, start,
                                            fingerprint)
                print(f"{stage.name}: best validation mIoU {100 * result['miou']:.2f} % at step {result['step']}")
            else:
                print(f"{stage.name}: already finished, mIoU {100 * result['miou']:.2f} %")
            fallen = collapse.fall(stage.name, result["start_miou"], result["miou"])
            if fallen:
                self._on_collapse(fallen)

    def _run_training(self, stage, steps, dataset, val_names, start, fingerprint):
        """Train from ``start`` (a checkpoint or None), or from where an interrupted training of the stage stopped."""
        from data import datasets
        from dmt.training import Interrupted, Recipe, Trainer
        from utils.console import progress_bar

        options, machine, save = self.options, self.machine, not self.options.do_not_save
        model, carried = self.network.build(machine.device, start, options.weights, options.seed)
        recipe = Recipe(options.lr, options.weight_decay, options.gamma1, options.gamma2,
                        val_num_steps=options.val_num_steps, log_num_steps=options.log_num_steps,
                        save_num_steps=options.save_num_steps)
        state = stage.interrupted_state(fingerprint) if save and not options.redo else None
        step = state["step"] if state else 0
        stage.write_config({**vars(options), "fingerprint": fingerprint})
        stage.start_metrics(step)
        stop = []
        validate = machine.validator(self.data, val_names, self.network.input_format, progress_bar("validate", "batch"))
        trainer = Trainer(model, recipe, steps, self.network.input_format, machine.precision, machine.device, stage,
                          validate, self.network.describe(), fingerprint, save=save, board=stage.tensorboard(step),
                          stop_requested=lambda: bool(stop), on_collapse=self._on_collapse)
        if state:
            trainer.load_state_dict(state)
        loader = machine.loader(dataset, datasets.collate_training, batch_sampler=steps)

        def request_stop(number, _):
            if stop:  # asked twice: at once, without saving
                raise KeyboardInterrupt
            stop.append(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request_stop)
        print(f"{stage.name}: {len(dataset.names['labeled'])} labelled and {len(dataset.names['pseudo'])} pseudo-labelled "
              f"images, {options.epochs} epochs of {steps.per_epoch} steps on {machine.device} in "
              f"{machine.precision.kind}" + (f", going on from step {step}" if step else ""), flush=True)
        try:
            miou, best_step = trainer.run(loader, progress_bar(f"train {stage.name}", "step"))
        except Interrupted:
            print(f"{stage.name}: stopped at step {trainer.step}; the same command goes on from there", file=sys.stderr)
            sys.exit(128 + stop[0])
        result = {"miou": miou, "step": best_step, "start_miou": carried.get("miou"),
                  "skipped_steps": int(machine.precision.skipped.item())}
        stage.finish(result, fingerprint, save)
        if result["skipped_steps"]:
            print(f"{stage.name}: {result['skipped_steps']} of {steps.total} steps skipped by the loss scaler")
        return result

    def label(self):
        """Label the unlabelled images of the split with --continue-from, and with PLE if --oldfilename is given."""
        from data import datasets, images
        from data.store import PseudoLabelStore
        from dmt import collapse, labeling
        from utils.console import progress_bar
        from utils.files import locked, make_folder

        options, machine = self.options, self.machine
        names = self.data.unlabeled(options.train_set, options.sets_id)
        images.check_present(self.data.images(names))
        checkpoint = self._checkpoint("continue_from")
        old = self._checkpoint("oldfilename") if options.oldfilename else None
        rules = labeling.LabelingRules(options.label_ratio, options.increment, self._background(),
                                       not options.no_conflict_reduction)
        folder = make_folder(self._pseudo_dir())
        store = PseudoLabelStore(folder, self.spec.palette)
        known = {}  # checkpoint -> its validation IoU per class, where the file has it

        def predict(file, target, batches):
            model, carried = self.network.build(machine.device, file)
            known[file] = carried.get("iou")
            loader = machine.loader(self.data.whole_images(names), datasets.collate_whole, batch_sampler=batches)
            return labeling.predict(model, loader, names, target, self.network.input_format, machine.precision,
                                    machine.device, progress_bar(f"predict with {file.name}", "batch"))

        def check(histogram):
            labeling.warn_of_empty_classes(histogram, self.spec.class_names)
            collapsed = collapse.one_class(histogram.pixels(), self.spec.class_names, known.get(checkpoint))
            if collapsed:
                self._on_collapse(collapsed)

        source = {"dataset": self.spec.name, "split": str(options.train_set), "split_id": str(options.sets_id),
                  "test_size": list(self.spec.test_size), "network": self.network.identity()}
        with locked(folder / ".lock", f"the folder of pseudo labels {folder}"):
            if options.redo:
                shutil.rmtree(folder / "logits", ignore_errors=True)
                store.remove_manifest()
            shares, new = labeling.label(predict, checkpoint, old, names, store, source, rules, machine.batch_size,
                                         machine.device, progress_bar("thresholds and PLE", "image", len(names)), check)
        ple = f", {100 * shares['after']:.2f} % after PLE ({100 * shares['changed']:.2f} % changed)" if old else ""
        print(f"{'labelled' if new else 'already labelled:'} {len(names)} images in {folder}: "
              f"{100 * shares['before']:.2f} % of the pixels{ple}")

    def test(self):
        """Print the validation result of --continue-from."""
        from data import images
        from utils.console import progress_bar

        names = self.data.validation(self.options.valtiny)
        images.check_pairs(self.spec, self.data.pairs(names, "val"))
        model, _ = self.network.build(self.machine.device, self._checkpoint("continue_from"))
        result = self.machine.validator(self.data, names, self.network.input_format,
                                        progress_bar("validate", "batch"))(model).compute()
        for name, iou in zip(self.spec.class_names, result["iou"]):
            print(f"{name:20} {100 * iou:6.2f}")
        print(f"{'pixel accuracy':20} {100 * result['pixel_accuracy']:6.2f}")
        print(f"{'mIoU':20} {100 * result['miou']:6.2f}")

    def check(self):
        """Check everything that the run needs, and exit with status 2 when something is missing or wrong."""
        from dmt.check import Plan, Subset, check, print_report
        from utils.console import progress_bar

        options, device = self.options, self.machine.device
        split = (options.train_set, options.sets_id)
        subsets = {"labelled": Subset(lambda: self.data.labeled(*split)),
                   "validation": Subset(lambda: self.data.validation(options.valtiny), "val")}
        if options.state == 1:
            subsets["unlabelled"] = Subset(lambda: self.data.unlabeled(*split), labelled=False)
        weights = []
        if options.continue_from:
            weights.append(lambda: self.network.build("cpu", self._checkpoint("continue_from")))
        if options.check_weights or not options.continue_from:
            imagenet = dataclasses.replace(self.network, coco=self.network.coco and not options.check_weights)
            weights.append(lambda: imagenet.build("cpu", weights=options.weights))
        plan = Plan(Path(options.output_dir), str(device), options.backbone, options.aspp_branches,
                    self.machine.precision.kind != "fp32", options.batch_size_labeled + options.batch_size_pseudo * (options.state == 1),
                    options.batch_size_labeling, rounds=5 if options.state == 1 else 0)
        report = check(self.data, subsets, plan, functions=weights, progress=progress_bar("check", "image"))
        print_report(report)
        if report.errors:
            sys.exit(2)

    def _pseudo_labeled(self):
        """Names, store and manifest of the pseudo labels, checked to be of this split."""
        from data.store import PseudoLabelStore

        options = self.options
        if not options.batch_size_pseudo:
            raise UserError("--batch-size-pseudo 0: semi-supervised training needs pseudo-labelled images; "
                            "give at least 1, or --state=2 for supervised training")
        names = self.data.unlabeled(options.train_set, options.sets_id)
        store = PseudoLabelStore(self._pseudo_dir())
        return names, store, store.check_split(self.spec.name, options.train_set, options.sets_id, names)

    def _pseudo_dir(self):
        return Path(self.options.pseudo_dir or Path(self.options.output_dir) / "pseudo_labels").expanduser()

    def _background(self):
        choice = self.options.background
        background = {"spec": self.spec.background, "none": None}.get(choice, choice)
        if background is not None and background >= self.spec.num_classes:
            raise UserError(f"--background {background}: {self.spec.name} has the classes 0 to "
                            f"{self.spec.num_classes - 1}; give one of them or none")
        return background

    def _checkpoint(self, option):
        from utils.checkpoints import find_checkpoint
        path = getattr(self.options, option)
        if not path:
            raise UserError(f"--{option.replace('_', '-')} is missing: give the checkpoint to label with or to test")
        return find_checkpoint(path, self.options.output_dir)

    def _fingerprint(self, start, manifest, **lists):
        """Everything that the result of a training depends on, but for the contents of the images, as plain values."""
        from data.store import names_digest
        from utils.files import sha256

        options = vars(self.options)
        weights = options["weights"]
        if not start and weights and weights != "none":
            weights = sha256(weights)
        return json.loads(json.dumps({
            "options": {name: options[name] for name in (
                "state", "train_set", "sets_id", "epochs", "batch_size_labeled", "batch_size_pseudo", "lr",
                "weight_decay", "gamma1", "gamma2", "seed", "val_num_steps", "batch_size_labeling", "no_aug")},
            "network": self.network.identity(), "precision": self.machine.precision.kind,
            "device": self.machine.device.type, "dataset": {**dataclasses.asdict(self.spec), "root": None},
            "lists": {f"{name}_names": names_digest(names) for name, names in lists.items()},
            "start": sha256(start) if start else weights, "pseudo_labels": manifest}))

    def _on_collapse(self, message):
        from dmt.collapse import Collapse
        if self.options.on_collapse == "stop":
            raise Collapse(message)
        print(f"warning: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

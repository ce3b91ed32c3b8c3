#!/usr/bin/env python3
"""One stage of DMT+PLE: train (supervised or on pseudo labels), label the unlabelled images, or test."""

import dataclasses
import json
import os
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
    if options.labeling:
        job.label()
    elif options.state == 3:
        job.test()
    else:
        job.train(mutual=options.state == 1)


class Job:
    """What the options name, looked up and checked: dataset, device, network, folders."""

    def __init__(self, options):
        # Threads that spin while they wait make a busy machine ten times slower; OpenMP reads this when torch loads it.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import cv2
        import torch
        from data.specs import load_spec, resolve_root
        from models.input_format import input_format
        from utils.precision import choose_precision

        self.options = options
        spec = load_spec(options.dataset)
        self.spec = dataclasses.replace(spec, crop=tuple(options.crop_size or spec.crop),
                                        test_size=tuple(options.test_size or spec.test_size))
        self.root = resolve_root(spec, options.data_root)
        try:
            self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {options.device}: not usable here ({str(error).splitlines()[0]}); "
                            "give cpu, cuda or cuda:N, or leave the option out") from error
        cv2.setNumThreads(1)  # its threads and torch's would wait for each other
        torch.set_flush_denormal(True)  # a CPU computes many times slower on the tiny numbers of a confident softmax
        torch.backends.cudnn.benchmark = True  # crops and test images have one size each
        self.workers = options.workers
        if self.workers is None:
            self.workers = 0 if self.device.type == "cpu" else min(8, torch.get_num_threads())
        self.input_format = input_format(options.coco)
        self.precision = choose_precision(options.mixed_precision, options.amp_backend, options.amp_dtype, self.device)

    # --- the three kinds of stage -------------------------------------------------------------------------------

    def train(self, mutual):
        """Supervised training, or mutual training on the pseudo labels of another arm and the labelled images."""
        from data import batches, datasets, images
        from dmt import collapse
        from utils.runs import Stage

        options = self.options
        streams, names, pseudo_names, store, manifest = [], self._labeled(), [], None, None
        if mutual:
            pseudo_names, store, manifest = self._pseudo_labeled()
            streams.append(batches.Stream(datasets.PSEUDO, len(pseudo_names), options.batch_size_pseudo, options.seed))
        if options.batch_size_labeled:
            streams.append(batches.Stream(datasets.LABELED, len(names), options.batch_size_labeled, options.seed))
        elif not mutual:
            raise UserError("--batch-size-labeled 0: supervised training needs labelled images; give at least 1")
        val_names = self._validation_names()
        start = self._checkpoint(options.continue_from, "", "") if options.continue_from else None
        fingerprint = self._fingerprint(start, manifest, labeled=names, validation=val_names)
        with Stage(options.output_dir, options.exp_name or self._default_name()) as stage:
            result = None if options.do_not_save or options.redo else stage.result(fingerprint)
            if result is None:
                if store is not None:
                    store.check_files(pseudo_names)
                    images.check_present(self.spec.image_path(self.root, name) for name in pseudo_names)
                images.check_pairs(self.spec, [*self._pairs(names, "train"), *self._pairs(val_names, "val")])
                dataset = datasets.TrainingImages(self.spec, self.root, self.spec.crop, options.seed, names,
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

        options, save = self.options, not self.options.do_not_save
        model, start_miou = self._model(start)
        recipe = Recipe(options.lr, options.weight_decay, options.gamma1, options.gamma2,
                        val_num_steps=options.val_num_steps, log_num_steps=options.log_num_steps,
                        save_num_steps=options.save_num_steps)
        state = stage.interrupted_state(fingerprint) if save and not options.redo else None
        step = state["step"] if state else 0
        stage.write_config({**vars(options), "fingerprint": fingerprint})
        stage.start_metrics(step)
        stop = []
        trainer = Trainer(model, recipe, steps, self.input_format, self.precision, self.device, stage,
                          self._validator(val_names), self._describe(), fingerprint, save=save,
                          board=stage.tensorboard(step), stop_requested=lambda: bool(stop),
                          on_collapse=self._on_collapse)
        if state:
            trainer.load_state_dict(state)
        loader = self._loader(dataset, datasets.collate_training, batch_sampler=steps)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: stop.append(received))
        print(f"{stage.name}: {len(dataset.names['labeled'])} labelled and {len(dataset.names['pseudo'])} pseudo-labelled "
              f"images, {options.epochs} epochs of {steps.per_epoch} steps on {self.device} in {self.precision.kind}"
              + (f", going on from step {step}" if step else ""), flush=True)
        try:
            miou, best_step = trainer.run(loader, progress_bar(f"train {stage.name}", "step"))
        except Interrupted:
            print(f"{stage.name}: stopped at step {trainer.step}; the same command goes on from there", file=sys.stderr)
            sys.exit(128 + stop[0])
        result = {"miou": miou, "step": best_step, "start_miou": start_miou,
                  "skipped_steps": int(self.precision.skipped.item())}
        stage.finish(result, fingerprint, save)
        if result["skipped_steps"]:
            print(f"{stage.name}: {result['skipped_steps']} of {steps.total} steps skipped by the loss scaler")
        return result

    def label(self):
        """Label the unlabelled images of the split with --continue-from, and with PLE if --oldfilename is given."""
        from data import datasets, images
        from data.lists import unlabeled_names
        from data.store import PseudoLabelStore
        from dmt import collapse, labeling
        from utils.console import progress_bar
        from utils.files import locked, make_folder

        options = self.options
        names = unlabeled_names(self._lists_spec(), self.root, options.train_set, options.sets_id)
        if not names:
            raise UserError(f"--train-set {options.train_set} has no unlabelled images to label; choose another split")
        images.check_present(self.spec.image_path(self.root, name) for name in names)
        checkpoint = self._checkpoint(options.continue_from, "--continue-from", "label with")
        old = self._checkpoint(options.oldfilename, "--oldfilename", "") if options.oldfilename else None
        rules = labeling.LabelingRules(options.label_ratio, options.increment, self._background(),
                                       not options.no_conflict_reduction)
        folder = make_folder(self._pseudo_dir())
        store = PseudoLabelStore(folder, self.spec.palette)
        dataset = datasets.WholeImages(self.spec, self.root, names, "train", self.spec.test_size, labels=False)
        known = {}

        def predict(file, target, batches):
            model, _ = self._model(file, known)
            loader = self._loader(dataset, datasets.collate_whole, batch_sampler=batches)
            return labeling.predict(model, loader, names, target, self.input_format, self.precision, self.device,
                                    progress_bar(f"predict with {file.name}", "batch"))

        def check(histogram):
            labeling.warn_of_empty_classes(histogram, self.spec.class_names)
            collapsed = collapse.one_class(histogram.pixels(), self.spec.class_names, known.get(checkpoint))
            if collapsed:
                self._on_collapse(collapsed)

        source = {"dataset": self.spec.name, "split": str(options.train_set), "split_id": str(options.sets_id),
                  "test_size": list(self.spec.test_size), "network": self._network()}
        with locked(folder / ".lock", f"the folder of pseudo labels {folder}"):
            if options.redo:
                shutil.rmtree(folder / "logits", ignore_errors=True)
                store.remove_manifest()
            shares, new = labeling.label(predict, checkpoint, old, names, store, source, rules,
                                         options.batch_size_labeling, self.device,
                                         progress_bar("thresholds and PLE", "image", len(names)), check)
        ple = f", {100 * shares['after']:.2f} % after PLE ({100 * shares['changed']:.2f} % changed)" if old else ""
        print(f"{'labelled' if new else 'already labelled:'} {len(names)} images in {folder}: "
              f"{100 * shares['before']:.2f} % of the pixels{ple}")

    def test(self):
        """Print the validation result of --continue-from."""
        from data import images

        names = self._validation_names()
        images.check_pairs(self.spec, self._pairs(names, "val"))
        model, _ = self._model(self._checkpoint(self.options.continue_from, "--continue-from", "test"))
        result = self._validator(names)(model).compute()
        for name, iou in zip(self.spec.class_names, result["iou"]):
            print(f"{name:20} {100 * iou:6.2f}")
        print(f"{'pixel accuracy':20} {100 * result['pixel_accuracy']:6.2f}")
        print(f"{'mIoU':20} {100 * result['miou']:6.2f}")

    # --- what the stages share ----------------------------------------------------------------------------------

    def _lists_spec(self):
        """The spec, with its lists in --lists-dir if that is given."""
        folder = self.options.lists_dir
        return dataclasses.replace(self.spec, lists=str(Path(folder).expanduser().absolute())) if folder else self.spec

    def _labeled(self):
        from data.lists import labeled_names
        return labeled_names(self._lists_spec(), self.root, self.options.train_set, self.options.sets_id)

    def _validation_names(self):
        from data.lists import find_validation_list, read_list
        if self.options.valtiny:
            return read_list(self.spec.list_path(self.root, "valtiny.txt"))
        return read_list(find_validation_list(self.spec, self.root))

    def _pseudo_labeled(self):
        """Names and store of the pseudo labels, checked to be of this split."""
        from data import images
        from data.lists import unlabeled_names
        from data.store import PseudoLabelStore

        options = self.options
        if not options.batch_size_pseudo:
            raise UserError("--batch-size-pseudo 0: semi-supervised training needs pseudo-labelled images; "
                            "give at least 1, or --state=2 for supervised training")
        names = unlabeled_names(self._lists_spec(), self.root, options.train_set, options.sets_id)
        if not names:
            raise UserError(f"--train-set {options.train_set} has no unlabelled images; choose another split, "
                            "or --state=2 for supervised training")
        store = PseudoLabelStore(self._pseudo_dir())
        return names, store, store.check_split(self.spec.name, options.train_set, options.sets_id, names)

    def _pairs(self, names, subset):
        return [(self.spec.image_path(self.root, name, subset), self.spec.label_path(self.root, name, subset))
                for name in names]

    def _pseudo_dir(self):
        return Path(self.options.pseudo_dir or Path(self.options.output_dir) / "pseudo_labels").expanduser()

    def _background(self):
        choice = self.options.background
        background = {"spec": self.spec.background, "none": None}.get(choice, choice)
        if background is not None and background >= self.spec.num_classes:
            raise UserError(f"--background {background}: {self.spec.name} has the classes 0 to "
                            f"{self.spec.num_classes - 1}; give one of them or none")
        return background

    def _default_name(self):
        return f"{self.spec.name}-{self.options.train_set}-{self.options.sets_id}"

    def _checkpoint(self, path, flag, purpose):
        from utils.checkpoints import find_checkpoint
        if not path:
            raise UserError(f"{flag} is missing: give the checkpoint to {purpose}")
        return find_checkpoint(path, self.options.output_dir)

    def _network(self):
        options = self.options
        return {"backbone": options.backbone, "aspp_branches": options.aspp_branches,
                "input_format": self.input_format.name, "num_classes": self.spec.num_classes}

    def _describe(self):
        return {**self._network(), "class_names": list(self.spec.class_names), "dataset": self.spec.name}

    def _fingerprint(self, start, manifest, **lists):
        """Everything that the result of a training depends on, but for the contents of the images, as plain values."""
        from data.store import names_digest
        from utils.files import sha256

        options = vars(self.options)
        return json.loads(json.dumps({
            "options": {name: options[name] for name in (
                "state", "train_set", "sets_id", "epochs", "batch_size_labeled", "batch_size_pseudo", "lr",
                "weight_decay", "gamma1", "gamma2", "seed", "val_num_steps", "batch_size_labeling", "no_aug")},
            "network": self._network(), "precision": self.precision.kind, "device": self.device.type,
            "dataset": {**dataclasses.asdict(self.spec), "root": None},
            "lists": {f"{name}_names": names_digest(names) for name, names in lists.items()},
            "start": sha256(start) if start else str(self.options.weights and Path(self.options.weights).name),
            "pseudo_labels": manifest}))

    def _on_collapse(self, message):
        from dmt.collapse import Collapse
        if self.options.on_collapse == "stop":
            raise Collapse(message)
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def _model(self, checkpoint=None, known=None):
        """(network on the device, its validation mIoU or None): from a checkpoint, or backbone weights on a seeded head.

        ``known`` is a dict that gets the checkpoint's validation IoU per class, where the file has it.
        """
        import torch
        from models import deeplab_v2
        from models.weights import load_imagenet_weights
        from utils.checkpoints import load_model

        options = self.options
        torch.manual_seed(options.seed)
        model = deeplab_v2(self.spec.num_classes, options.backbone, options.aspp_branches)
        miou = None
        if checkpoint is not None:
            content = load_model(model, checkpoint)
            miou = content.get("miou") if isinstance(content.get("miou"), float) else None
            if known is not None:
                known[checkpoint] = content.get("iou")
            branches = content.get("aspp_branches", options.aspp_branches)
            if branches != options.aspp_branches:
                raise UserError(f"{checkpoint} was trained with --aspp-branches {branches}, but this stage has "
                                f"{options.aspp_branches}; add --aspp-branches {branches}")
            names = content.get("class_names", list(self.spec.class_names))
            if names != list(self.spec.class_names):
                raise UserError(f"{checkpoint} was trained for other classes ({', '.join(map(str, names))}); give a "
                                f"checkpoint of {self.spec.name} or the dataset of this checkpoint")
            trained_with = content.get("input_format", self.input_format.name)
            if trained_with != self.input_format.name:
                print(f"warning: {checkpoint} was trained with the input format {trained_with}, but this stage uses "
                      f"{self.input_format.name}; {'add' if trained_with == 'coco' else 'leave out'} --coco",
                      file=sys.stderr)
        elif options.coco and not options.weights:
            raise UserError("--coco without --continue-from: give the COCO weights (prepare_coco.sh makes "
                            "voc_coco_resnet101.pt and city_coco_resnet101.pt), or --weights none to start from nothing")
        else:
            load_imagenet_weights(model, options.weights)
        return model.to(self.device, memory_format=torch.channels_last), miou

    def _loader(self, dataset, collate, **batches):
        from torch.utils.data import DataLoader
        from data.datasets import start_worker
        return DataLoader(dataset, collate_fn=collate, num_workers=self.workers, worker_init_fn=start_worker,
                          pin_memory=self.device.type == "cuda", persistent_workers=self.workers > 0, **batches)

    def _validator(self, names):
        """A function model -> ConfusionMatrix over the validation images ``names``; its loader is kept between calls."""
        from data import datasets
        from dmt.evaluation import evaluate
        from utils.console import progress_bar

        dataset = datasets.WholeImages(self.spec, self.root, names, "val", self.spec.test_size, labels=True)
        loader = self._loader(dataset, datasets.collate_whole, batch_size=self.options.batch_size_labeling)
        return lambda model: evaluate(model, loader, self.input_format, self.precision, self.device,
                                      progress_bar("validate", "batch"))


if __name__ == "__main__":
    main()

"""What main.py's options ask for, with plain values: train, label, test or check. Nothing else sees the options."""

import copy
import functools
import sys
from pathlib import Path

from data.datasets import check_shared_memory, loaders
from dmt.session import Data, Machine, Setting, choose_device
from models.description import choose_network
from utils import precision
from utils.checkpoints import find_checkpoint
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import make_folder
from utils.runs import known_parts


class Job:
    """The stage that the options describe."""

    def __init__(self, options, processes):
        self.options = options
        self.data = Data(options.dataset, options.data_root, options.lists_dir, options.crop_size, options.test_size,
                         options.max_pixels)
        self.spec = self.data.spec
        self.split = (options.train_set, options.sets_id)
        device = choose_device(options.device, processes)
        processes.connect(device)
        chosen = precision.choose_precision(options.mixed_precision, options.amp_backend, options.amp_dtype, device)
        workers = options.workers
        if workers is None:
            workers = 0 if device.type == "cpu" else loaders(processes.local_size)
        if workers:
            check_shared_memory()
        graphs = options.max_memory is None if options.cuda_graphs is None else options.cuda_graphs
        self.machine = Machine(device, chosen, workers, options.batch_size_labeling, options.compile,
                               graphs and chosen.is_torchs, processes)

    @functools.cached_property
    def network(self):
        """The network of --continue-from, if there is one, and else of the options."""
        return self._network(self._checkpoint("continue_from") if self.options.continue_from else None)

    def _network(self, checkpoint):
        options = self.options
        return choose_network(self.spec, checkpoint, options.backbone, options.aspp_branches, options.coco,
                              options.output_stride)

    def train(self, mutual):
        """Supervised training, or mutual training on the pseudo labels of another arm and the labelled images."""
        from dmt import train_stage  # what the others do without
        from dmt.training import Interrupted, Recipe
        options = self.options
        if not mutual and not options.batch_size_labeled:
            raise UserError("--batch-size-labeled 0: supervised training needs labelled images; give at least 1")
        if mutual and not options.batch_size_pseudo:
            raise UserError("--batch-size-pseudo 0: semi-supervised training needs pseudo-labelled images; "
                            "give at least 1, or --state=2 for supervised training")
        if options.online is not None and (not mutual or options.gamma1 or options.gamma2
                                           or options.on_student_win != "stop"):
            raise UserError("--online: the model learns from its own labels, all of which count fully; "
                            "leave out --state=2, --gamma1, --gamma2 and --on-student-win")
        recipe = Recipe(options.lr, options.weight_decay, options.gamma1, options.gamma2, options.on_student_win,
                        options.online, val_num_steps=options.val_num_steps, log_num_steps=options.log_num_steps,
                        save_num_steps=options.save_num_steps)
        start, weights = self._start()
        name = options.exp_name or "-".join((self.spec.name, *self.split))
        self._check_sizes("--crop-size", "--test-size")
        parts = self._parts(self._batch_size(), self.network, name)
        setting = Setting(self.data, self.machine, self.network, self.split, options.on_collapse)
        plan = train_stage.Training(
            name, Path(options.output_dir), recipe, options.epochs, options.batch_size_labeled,
            options.batch_size_pseudo if mutual else None, options.seed,
            pseudo_dir=self._pseudo_dir(), augment_pseudo=not options.no_aug, tiny_validation=options.valtiny,
            accumulate=parts, start=start, weights=weights, save=not options.do_not_save, redo=options.redo,
            config={**vars(options), "accumulate": parts})
        try:
            train_stage.run(setting, plan)
        except Interrupted as interrupted:
            sys.exit(128 + interrupted.signal)

    def label(self):
        """Label the unlabelled images of the split with --continue-from, and with PLE if --oldfilename is given."""
        from dmt import label_stage  # what the others do without
        from dmt.labeling import LabelingRules
        options = self.options
        background = {"spec": self.spec.background, "none": None}.get(options.background, options.background)
        if background is not None and background >= self.spec.num_classes:
            raise UserError(f"--background {background}: {self.spec.name} has the classes 0 to "
                            f"{self.spec.num_classes - 1}; give one of them or none")
        rules = LabelingRules(options.label_ratio, options.increment, background, not options.no_conflict_reduction,
                              options.previous_statistics)
        self._check_sizes("--test-size")
        self._parts(0, self.network)
        setting = Setting(self.data, self.machine, self.network, self.split, options.on_collapse)
        label_stage.run(setting, self._pseudo_dir(), self._checkpoint("continue_from"),
                        self._checkpoint("oldfilename") if options.oldfilename else None, rules, options.redo)

    def test(self):
        """Test --continue-from, and the other arm and their ensemble if there is one: a table, and the same as JSON."""
        from predict import load, test  # as above
        options, spec, machine = self.options, self.spec, self.machine
        files, coco = [self._checkpoint("continue_from")], [bool(options.coco)]
        if options.second_arm:
            files.append(self._checkpoint("second_arm"))
            coco.append(options.second_coco)
        name = "+".join(path.stem for path in files)
        result = Path(options.json or Path(options.output_dir) / f"{name}-test.json").expanduser()
        if result.is_dir():
            raise UserError(f"--json {result} is a folder; give the name of a file")
        network = load(*files, dataset=spec, coco=coco, aspp_branches=options.aspp_branches or 2, device=machine.device,
                       precision=machine.precision, protocol=options.protocol, test_size=spec.test_size,
                       test_by=spec.test_by, window=options.window or spec.crop, stride=options.stride,
                       scales=options.scales, flip=options.flip)
        for member in network.members if options.protocol == "papers" else ():  # others' batches have own sizes
            self._parts(0, member.description)
        machine.processes.first(make_folder, result.parent)
        samples = self.data.validation(options.valtiny)
        print(test.headline(network), flush=True)
        matrices = test.test(self.data, samples, network, machine)
        print(test.table(spec.class_names, matrices))
        machine.processes.first(test.write_results, result, self.data, samples, network, matrices)
        print(f"written to {result}")

    def check(self, all_stages):
        """Check everything that ``all_stages`` (options of one dataset) need; returns whether nothing is wrong.

        Of several stages those that start from first weights need them; the others start from what is not there yet.
        """
        from dmt.check import check, print_report, subsets  # as above
        trainings = [stage for stage in all_stages if not stage.labeling] or all_stages
        first = all_stages if len(all_stages) == 1 else [
            stage for stage in trainings
            if stage.state == 2 and not Path(stage.output_dir, f"{stage.exp_name}.pt").is_file()]
        largest = self._of(max(trainings, key=lambda stage: self._of(stage)._batch_size()))
        try:
            network = largest.network
        except UserError:  # not there yet; where it has to be, the functions say it
            network = self._of((first or trainings)[0])._network(None)
        needed = largest._work(largest._batch_size(), network)
        report = check(self.data, subsets(self.data, trainings), needed,
                       functions=[self._of(stage)._check_start for stage in first],
                       progress=progress_bar("check", "image"))
        print_report(report)
        return not report.errors

    def _of(self, options):
        """The job of another stage on the same data and machine."""
        job = copy.copy(self)
        job.__dict__.pop("network", None)
        job.options = options
        return job

    def _check_start(self):
        """Raise ``UserError`` where the network that the stage starts with cannot be had."""
        self.network.build("cpu", *self._start())
        if self.options.check_weights and self.options.continue_from:
            self._network(None).build("cpu", None, self.options.weights)
        self._check_sizes("--crop-size", "--test-size")

    def _check_sizes(self, *options):
        """Raise ``UserError`` when the network does not take images of the sizes of these ``options``."""
        for option in options:
            size = {"--crop-size": self.spec.crop, "--test-size": self.spec.test_size}[option]
            self.network.traits.check_size(size, self.network.backbone, option)

    def _batch_size(self):
        """Images a training step."""
        return self.options.batch_size_labeled + (self.options.batch_size_pseudo if self.options.state == 1 else 0)

    def _work(self, batch_size, network):
        from dmt.memory import Workload
        options, machine = self.options, self.machine
        return Workload(
            Path(options.output_dir), str(machine.device), network.backbone, network.aspp_branches,
            machine.precision.kind != "fp32", batch_size, options.batch_size_labeling, options.accumulate or 1,
            machine.processes.size, options.max_memory, rounds=5 if options.state == 1 else 0,
            output_stride=network.output_stride)

    def _parts(self, batch_size, network, name=None):
        """In how many parts batches are computed. With --max-memory it is picked, and the estimate is printed.

        A training ``name`` that goes on keeps what it had.
        """
        if not self.options.accumulate and self.options.max_memory is None:
            return 1
        from dmt import memory  # what most do without
        known = known_parts(self.options.output_dir, name) if name and not self.options.redo else None
        work = memory.fit(self.spec, self._work(batch_size, network), known)
        if work.max_memory is not None:
            print(f"memory: {memory.estimate(self.spec, work)}", flush=True)
        return work.accumulate

    def _pseudo_dir(self):
        return Path(self.options.pseudo_dir or Path(self.options.output_dir) / "pseudo_labels").expanduser()

    def _start(self):
        """(checkpoint to start from or None, weights of the encoder or None)."""
        given = self._checkpoint("continue_from") if self.options.continue_from else None
        return (None, str(given)) if self.options.new_head else (given, self.options.weights)

    def _checkpoint(self, option):
        path = getattr(self.options, option)
        if not path:
            raise UserError(f"--{option.replace('_', '-')} is missing: give the checkpoint to label with or to test")
        return find_checkpoint(path, self.options.output_dir)

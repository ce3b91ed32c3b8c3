"""What the options of a stage ask for, as plain values and objects of ``dmt``."""

import copy
import functools
from pathlib import Path

from data.datasets import check_shared_memory, loaders
from dmt import memory
from dmt.session import Data, Machine, Setting, choose_device
from models.description import choose_network
from utils import precision
from utils.checkpoints import find_checkpoint
from utils.errors import UserError


class Job:
    """The stage that the ``options`` describe, or the first of several ``stages`` of one dataset (a plan)."""

    def __init__(self, stages, processes):
        self.stages, self.options = stages, stages[0]
        options = self.options
        self.data = Data(options.dataset, options.data_root, options.lists_dir, options.crop_size, options.test_size,
                         options.max_pixels)
        self.spec = self.data.spec
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

    def of(self, options):
        """The job of another stage on the same data and machine."""
        job = copy.copy(self)
        job.__dict__.pop("network", None)
        job.options = options
        return job

    @property
    def setting(self):
        """The ``dmt.session.Setting``."""
        options = self.options
        return Setting(self.data, self.machine, self.network, (options.train_set, options.sets_id), options.on_collapse)

    @functools.cached_property
    def network(self):
        """The network of --continue-from, if there is one, and else of the options."""
        return self.network_of(self.checkpoint("continue_from") if self.options.continue_from else None)

    def network_of(self, checkpoint):
        """The ``models.description.Description`` of the network of ``checkpoint``; of the options where it is None."""
        options = self.options
        return choose_network(self.spec, checkpoint, options.backbone, options.aspp_branches, options.coco,
                              options.output_stride)

    def checkpoint(self, option):
        """Path of the checkpoint that the ``option`` (as ``continue_from``) names, which must be there."""
        path = getattr(self.options, option)
        if not path:
            raise UserError(f"--{option.replace('_', '-')} is missing: give the checkpoint to label with or to test")
        return find_checkpoint(path, self.options.output_dir)

    def start(self):
        """(checkpoint to start from or None, weights of the encoder or None)."""
        given = self.checkpoint("continue_from") if self.options.continue_from else None
        return (None, str(given)) if self.options.new_head else (given, self.options.weights)

    def check_sizes(self, *options):
        """Raise ``UserError`` when the network does not take images of the sizes of these ``options``."""
        for option in options:
            size = {"--crop-size": self.spec.crop, "--test-size": self.spec.test_size}[option]
            self.network.traits.check_size(size, self.network.backbone, option)

    @property
    def batch_size(self):
        """Images a training step."""
        return self.options.batch_size_labeled + (self.options.batch_size_pseudo if self.options.state == 1 else 0)

    def workload(self, batch_size, network):
        """The ``dmt.memory.Workload`` of the stage with that many images a training step (0: none)."""
        options, machine = self.options, self.machine
        return memory.Workload(
            Path(options.output_dir), str(machine.device), network.backbone, network.aspp_branches,
            machine.precision.kind != "fp32", batch_size, options.batch_size_labeling, options.accumulate or 1,
            machine.processes.size, options.max_memory, rounds=5 if options.state == 1 else 0,
            output_stride=network.output_stride)

    def parts(self, batch_size, network, known=None):
        """In how many parts batches are computed. With --max-memory it is picked, and the estimate is printed.

        A training that goes on keeps the ``known`` parts that it had.
        """
        if not self.options.accumulate and self.options.max_memory is None:
            return 1
        work = memory.fit(self.spec, self.workload(batch_size, network), known)
        if work.max_memory is not None:
            print(f"memory: {memory.estimate(self.spec, work)}", flush=True)
        return work.accumulate

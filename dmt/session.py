"""What every stage needs: the dataset with its lists, the device and its precision, and loaders."""

import dataclasses
import resource
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from torch.utils.data import BatchSampler, DataLoader

from data import lists
from data.datasets import start_worker
from data.images import largest_size
from data.lists import Sample
from data.specs import MAX_PIXELS, UNLABELED, load_spec, resolve_root
from models.description import Description
from utils.distributed import ALONE, Processes
from utils.errors import UserError
from utils.precision import Precision


def choose_device(name=None, processes=ALONE):
    """The ``torch.device`` of that name, or the GPU if there is one, prepared. Raises ``UserError`` if it is unusable.

    Of several processes on a machine each gets a GPU of its own.
    """
    if name is not None and name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: give cpu, cuda or cuda:N, or leave the option out")
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if processes.size > 1 and device.type == "cuda":
            device = _own_gpu(device, processes)
        elif device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # streams and graphs are made on the current one
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); "
                        "give cpu, cuda or cuda:N, or leave the option out") from error
    cv2.setNumThreads(1)  # its threads and torch's would wait for each other
    torch.set_flush_denormal(True)  # a CPU computes many times slower on the tiny numbers of a confident softmax
    return device


def _own_gpu(device, processes):
    count = torch.cuda.device_count()
    if device.index is not None or processes.local_size > count:
        raise UserError(f"{processes.local_size} processes on this machine need a GPU each, but "
                        + (f"--device {device} is one; give --device cuda" if device.index is not None
                           else f"it has {count or 'none'}; start no more processes than there are GPUs")
                        + ", or --device cpu")
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)


class Data:
    """One dataset on this machine: its spec, and the images of its lists.

    ``crop`` and ``test_size`` (height, width) replace the spec's when given; ``lists_dir`` is the folder of the split
    lists when they are not inside the dataset. Images of more than ``max_pixels`` pixels are refused.
    """

    def __init__(self, dataset, data_root, lists_dir=None, crop=None, test_size=None, max_pixels=MAX_PIXELS):
        spec = dataclasses.replace(load_spec(dataset), max_pixels=max_pixels)
        self.root = resolve_root(spec, data_root)
        test_size = test_size or spec.test_size or largest_size(spec, self.root)
        self.spec = dataclasses.replace(spec, crop=tuple(crop or spec.crop), test_size=tuple(test_size))
        # An absolute folder of lists is taken as it is, whatever the root.
        self._listed = dataclasses.replace(self.spec, lists=str(Path(lists_dir).expanduser().absolute())) \
            if lists_dir else self.spec

    def labeled(self, split, split_id):
        """The ``data.lists.Sample``s of the labelled images of a split."""
        return self.samples(lists.labeled_names(self._listed, self.root, split, split_id), "train")

    def unlabeled(self, split, split_id):
        """The samples of the unlabelled images of a split, without masks; an error when it has none."""
        names = lists.unlabeled_names(self._listed, self.root, split, split_id)
        if not names:
            raise UserError(f"--train-set {split} has no unlabelled images; choose another split, "
                            "or --state=2 for supervised training")
        return self.samples(names, UNLABELED)

    def validation(self, tiny=False):
        """The samples of the validation images, or of the short list."""
        spec, root = self.spec, self.root
        path = spec.list_path(root, "valtiny.txt") if tiny else lists.find_list(spec, root, "validation")
        return self.samples(lists.read_list(path, spec, root), "val")

    def samples(self, names, subset):
        """The samples of images by name; ``subset`` is train, val or ``UNLABELED`` (without masks)."""
        spec, root = self.spec, self.root
        return [Sample(name, spec.image_path(root, name, subset),
                       None if subset == UNLABELED else spec.label_path(root, name, subset)) for name in names]


@dataclass(frozen=True)
class Machine:
    """Where and how the network runs: device, ``utils.precision.Precision``, loader processes, images a forward pass.

    ``compiled`` and ``graphs`` (GPU only) make it faster: torch.compile of its blocks, CUDA graphs of full batches.
    ``processes`` are the ``utils.distributed.Processes`` that share the work.
    """

    device: torch.device
    precision: Precision
    workers: int
    batch_size: int
    compiled: bool = False
    graphs: bool = False
    processes: Processes = ALONE

    def whole_batches(self, samples):
        """This process's of the batches of the ``samples``, as lists.

        Batches are never cut, so that every image is computed in the same company whatever the number of processes.
        """
        return list(self.processes.share(BatchSampler(samples, self.batch_size, drop_last=False)))

    def loader(self, dataset, batches, collate=None):
        """A DataLoader with this machine's loader processes: ``batches`` are lists of keys of the ``dataset``, which
        stacks them unless it is told how to ``collate``."""
        return DataLoader(dataset, batch_sampler=batches, collate_fn=collate or dataset.collate,
                          num_workers=self.workers, worker_init_fn=start_worker, persistent_workers=self.workers > 0,
                          pin_memory=self.device.type == "cuda")

    def peak_memory(self):
        """The most memory so far, in MB: of this process, and of torch's tensors on the GPU, or None."""
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None
        return {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "gpu_peak_memory_mb": peak and round(peak, 1)}


@dataclass(frozen=True)
class Setting:
    """What every stage works with: data, machine, network, and (split, id) of the image lists.

    ``on_collapse`` says what happens when a collapse is noticed: "stop" or "warn" (see ``dmt.collapse``).
    """

    data: Data
    machine: Machine
    network: Description
    split: tuple
    on_collapse: str = "stop"

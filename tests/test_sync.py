"""A training step never makes the host wait for the device: what is logged is summed up there and read at intervals."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmt.loss import DynamicMutualLoss
from dmt.training import Trainer
from utils.metrics import ConfusionMatrix

# On a GPU each of these waits for what was computed so far (and numpy(), a view on a CPU, is refused there).
READS = ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "unique")
OPERATORS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::is_nonzero",
             "aten::equal", "aten::allclose")


class HostReads(TorchDispatchMode):
    """Collects what reads a tensor's values on the host while it is active, by operator and by method."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        by_mask = name in ("aten::index", "aten::index_put_", "aten::index_put") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if name in OPERATORS or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def methods(self, patch):
        """Tensor's own reading methods count too, for some read the memory without an operator."""
        for name in READS:
            original = getattr(torch.Tensor, name)

            def counted(tensor, *args, original=original, name=name, **kwargs):
                self.found.append(name)
                return original(tensor, *args, **kwargs)
            patch.setattr(torch.Tensor, name, counted)
        with self:
            yield
        patch.undo()


def test_the_counter_sees_reads(monkeypatch):
    reads, x = HostReads(), torch.arange(4.0)
    with reads.methods(monkeypatch):
        x.sum().item()
        x[x > 1]
        bool(x[0] > 0)
        x.cpu()
    assert {"item", "aten::index", "__bool__", "cpu"} <= set(reads.found)


@pytest.mark.parametrize("state", [1, 2])
def test_no_host_synchronization_in_a_training_step(state, shapes_root, tmp_path, command, monkeypatch):
    """Every step of a whole training stage, through the command line; validation and logging lie outside the steps."""
    from tests.test_stages import SMALL, first_weights
    first_weights(tmp_path / "net.pt", 8)
    common = [f"--data-root={shapes_root}", "--dataset=shapes", "--train-set=8", f"--output-dir={tmp_path}",
              "--continue-from=net.pt", "--test-size", 65, 65, *SMALL]
    if state == 1:
        assert command("--labeling", "--label-ratio=0.5", *common)[0] == 0
    counted, original = [], Trainer.step

    def step(self, *batch):
        with pytest.MonkeyPatch.context() as patch:
            reads = HostReads()
            with reads.methods(patch):
                original(self, *batch)
            counted.append(reads.found)

    monkeypatch.setattr(Trainer, "step", step)
    status, _, errors = command(f"--state={state}", "--exp-name=sync", "--epochs=2", "--batch-size-labeled=1",
                                "--batch-size-pseudo=3", "--gamma1=5", "--gamma2=5", *common)
    assert status == 0, errors
    assert len(counted) >= 4 and all(reads == [] for reads in counted), counted


@pytest.mark.gpu
def test_loss_and_matrix_do_not_synchronize_on_a_gpu():
    logits = torch.randn(4, 8, 33, 33, device="cuda", requires_grad=True)
    labels = torch.randint(0, 8, (4, 33, 33), device="cuda", dtype=torch.uint8)
    confidence = torch.rand(4, 33, 33, device="cuda")
    loss, matrix = DynamicMutualLoss(5, 5), ConfusionMatrix(8, device="cuda")
    for _ in range(2):  # the first round allocates
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            value, statistics = loss(logits, labels, confidence, 3)
            value.backward()
            matrix.update(labels, statistics["prediction"])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert matrix.matrix.sum() == 2 * labels.numel()

"""Mixed precision: one object that the training loop uses the same way whatever the backend."""

import contextlib
import importlib
import os
import sys

import torch

from utils.errors import UserError


class Precision:
    """Float32, torch's automatic mixed precision (fp16 with dynamic loss scaling, or bf16), or Apex AMP O1.

    ``kind`` is "fp32", "fp16", "bf16" or "apex". Use: ``model, optimizer = precision.prepare(model, optimizer)``, then
    per step ``with precision.autocast():`` around the network, ``precision.backward(loss, optimizer)`` and
    ``precision.step(optimizer)``.
    """

    def __init__(self, kind, device):
        self.kind, self.device = kind, torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=kind == "fp16")
        self.skipped = torch.zeros((), device=self.device)  # on the device, so that counting costs no synchronization
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(kind, torch.float32)  # of convolutions
        self.is_torchs = kind != "apex"  # Apex patches torch and reads the GPU in every step: no folding, no graphs
        self._apex = importlib.import_module("apex.amp") if kind == "apex" else None

    def prepare(self, model, optimizer):
        """Hand model and optimizer to Apex where it is the backend; otherwise return them as they are.

        An optimizer of torch's that skips steps by itself (``fused=True``) gets its momentum here, as zeros: in its
        first step it would take memory nobody wrote to, and if that overflows it leaves it so and goes on from there.
        """
        if self._apex is None:
            for group in optimizer.param_groups if self.kind == "fp16" else ():
                for parameter in group["params"] if group.get("fused") and group["momentum"] else ():
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return model, optimizer
        return self._apex.initialize(model, optimizer, opt_level="O1", verbosity=0)

    def autocast(self):
        """Context in which the network's convolutions run in the low precision."""
        if self.kind in ("fp16", "bf16"):
            return torch.autocast(self.device.type, self.dtype)
        return contextlib.nullcontext()

    def backward(self, loss, optimizer, last=True):
        """Add the gradients of ``loss``; ``last`` is whether no more follow before the optimizer's step."""
        if self._apex is not None:
            with self._apex.scale_loss(loss, optimizer, delay_unscale=not last) as scaled:
                scaled.backward()
        else:
            self.scaler.scale(loss).backward()

    def step(self, optimizer):
        """The optimizer's step. One whose scaled gradients overflow is skipped and counted."""
        if self._apex is not None:
            optimizer.step()
            return
        self.scaler.step(optimizer)
        if self.kind == "fp16":
            for found in self.scaler._found_inf_per_device(optimizer).values():
                self.skipped += found.to(self.device)
        self.scaler.update()

    def state_dict(self):
        """What a training needs to go on: the scaler's state and the number of skipped steps."""
        state = {"scaler": self.scaler.state_dict(), "skipped": self.skipped.item()}
        if self._apex is not None:
            state["apex"] = self._apex.state_dict()
        return state

    def load_state_dict(self, state):
        """Restore what ``state_dict`` returned."""
        if self.kind == "fp16":
            self.scaler.load_state_dict(state["scaler"])
        self.skipped.fill_(state["skipped"])
        if self._apex is not None and "apex" in state:
            self._apex.load_state_dict(state["apex"])


def choose_precision(mixed, backend, dtype, device):
    """The ``Precision`` that the options ask for.

    Raises ``UserError`` when Apex is asked for and ``apex.amp`` cannot be imported. On a CPU fp16 and Apex give way to
    float32 with a notice; bf16, which has to be asked for, is taken.
    """
    device = torch.device(device)
    if not mixed:
        return Precision("fp32", device)
    if backend == "apex":
        try:
            importlib.import_module("apex.amp")
        except ImportError as error:
            raise UserError(f"--amp-backend apex: apex.amp cannot be imported ({error}). NVIDIA removed AMP from Apex "
                            "in 2023 and 'apex' on PyPI is another project; leave out --amp-backend for torch's own "
                            "mixed precision, which does the same") from error
    if device.type == "cpu" and (backend == "apex" or dtype == "fp16"):
        if not os.environ.get("PLANNED"):  # a launcher's check has said it for all stages
            print("notice: --mixed-precision needs a GPU; on a CPU everything runs in float32", file=sys.stderr)
        return Precision("fp32", device)
    return Precision("apex" if backend == "apex" else dtype, device)

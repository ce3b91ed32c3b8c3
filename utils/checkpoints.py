"""Checkpoints: dicts of tensors and plain values, read with ``weights_only=True`` so that they never run code.

A file with the suffix .safetensors holds the same: the tensors of the key ``model``, and the rest as JSON.
"""

import io
import json
import pickle
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes

from utils.errors import UserError
from utils.files import write_bytes

SAFETENSORS = ".safetensors"
HEAD = "classifier.0.convs.0.bias"  # one number a class
COUNTER = "num_batches_tracked"  # BatchNorm's; older files have none, and nothing here uses it
_STATES = ("model", "state_dict")  # where a state dict is looked for
_PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
_KINDS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8}


def find_checkpoint(path, output_dir):
    """``path`` itself, or looked up in the working directory, then in ``output_dir``.

    Raises ``UserError`` naming the places when it is in none.
    """
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [given, Path(output_dir) / given]
    for place in places:
        if place.is_file():
            return place
    maker = "make COCO weights with prepare_coco.sh" if "coco" in given.name else "train the stage that writes it"
    where = f": it is neither {' nor '.join(map(str, places))}" if len(places) > 1 else ""
    raise UserError(f"the checkpoint {path} is missing{where}; {maker} or correct the path")


def save(path, value):
    """``torch.save`` of ``value``, atomically; equal values give equal bytes.

    Raises ``UserError`` when the disk is full or not writable.
    """
    content = io.BytesIO()  # torch.save to a file would store the file's name, too
    torch.save(value, content)
    write_bytes(path, content.getvalue())  # no copy, and unlike getbuffer() no danger where an error's frames keep it


def save_safetensors(path, state, values):
    """Write the state dict ``state`` and the JSON ``values`` beside it atomically; equal ones give equal bytes."""
    # One entry: safetensors writes several in an order that changes from run to run.
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(path, safetensors_bytes(state, metadata={"description": text}))


def load(path):
    """The dict in the checkpoint file ``path``. Raises ``UserError`` when it is none, or holds anything but data."""
    if Path(path).suffix.lower() in (".onnx", ".pt2"):
        raise UserError(f"{path} is an exported network; give the checkpoint that it was made from")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on foreign files; what matters is raised below
            if Path(path).suffix == SAFETENSORS:
                with safe_open(path, framework="pt", device="cpu") as file:
                    value = json.loads((file.metadata() or {}).get("description", "{}"))
                    value["model"] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            else:
                value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is no checkpoint that can be trusted: it is damaged or holds objects other than "
                        "tensors and plain values, such as a whole model; get it again, or save its state dict: "
                        "torch.save(model.state_dict(), FILE)") from error
    except Exception as error:  # on damaged files the unpickler raises whatever its parts raise, of ever more kinds
        raise UserError(f"{path} is no checkpoint or is damaged ({type(error).__name__}); "
                        "get it again or train the stage that writes it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(value).__name__}, not a dict with the key 'model'")
    return value


def load_checkpoint(path):
    """``load``, with the state dict under the key ``model``: there, under ``state_dict``, or the file itself; without
    the prefix that DataParallel gives. Raises ``UserError`` for a file without one, or with two."""
    checkpoint = load(path)
    found = [key for key in _STATES if _is_state(checkpoint.get(key))]
    if _is_state(checkpoint):
        state, checkpoint = checkpoint, {}
    elif len(found) == 1:
        state = checkpoint[found[0]]
    else:
        what = (f"{' and '.join(found)} are dicts of tensors" if found else
                "it has no dict of tensors under the key 'model'")
        raise UserError(f"{path} is no checkpoint of this software: {what}; give one that training wrote, or a file "
                        "made by torch.save(model.state_dict(), FILE)")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {**checkpoint, "model": state}


def _is_state(value):
    """Whether ``value`` is a dict of tensors to copy weights from: not sparse, without memory or of 8 bits."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        and tensor.device.type != "meta" and tensor.dtype in _KINDS for name, tensor in value.items())


def load_model(model, path):
    """Load the weights in the checkpoint ``path`` into ``model`` by name, and return the whole checkpoint dict.

    Raises ``UserError`` when the file has other classes, another network, or values that are not finite.
    """
    checkpoint = load_checkpoint(path)
    state = checkpoint["model"]
    own = model.state_dict()
    if HEAD in state and HEAD in own and state[HEAD].numel() != own[HEAD].numel():
        raise UserError(f"{path} was trained for {state[HEAD].numel()} classes, but the dataset has {len(own[HEAD])}; "
                        "give the checkpoint of this dataset or the dataset of this checkpoint, or train with "
                        "--new-head, which keeps its encoder alone")
    check_fit(state, own, f"{path} holds another network", "choose the right --backbone")
    if not all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point()):
        raise UserError(f"{path} holds values that are not finite (NaN or infinity); its training went wrong: "
                        "train that stage again with a smaller --lr")
    model.load_state_dict(state, strict=False)
    return checkpoint


def check_fit(state, own, what, remedy):
    """Every tensor of ``own`` must be in ``state`` with its shape, and nothing else; counters may be missing."""
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            raise UserError(f"{what}: {name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}; {remedy}")
        if name not in state and not name.endswith(COUNTER):
            raise UserError(f"{what}: {name} is missing; {remedy}")
    for name in state:
        if name not in own:
            raise UserError(f"{what}: {name} is unknown; {remedy}")

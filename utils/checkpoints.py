"""Checkpoints: dicts of tensors and plain values, read with ``weights_only=True`` so that they never run code."""

import hashlib
import io
import pickle
import warnings
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import replacing, write_bytes


def find_checkpoint(path, output_dir):
    """``path`` itself, or looked up in the working directory, then in ``output_dir``.

    Raises ``UserError`` naming both places when it is in neither.
    """
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [given, Path(output_dir) / given]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"the checkpoint {path} is missing: it is neither {' nor '.join(str(place) for place in places)}; "
                    "train the stage that writes it or correct the path")


def save_checkpoint(path, model, **extra):
    """Write ``{"model": state dict, "optimizer": None, "lr_scheduler": None, **extra}`` atomically."""
    save(path, {"model": model.state_dict(), "optimizer": None, "lr_scheduler": None, **extra})


def save(path, value):
    """``torch.save`` of ``value``, atomically; equal values give equal bytes.

    Raises ``UserError`` when the disk is full or not writable.
    """
    write_bytes(path, _serialized(value))


def _serialized(value):
    content = io.BytesIO()  # torch.save to a file would store the file's name, too
    torch.save(value, content)
    return content.getbuffer()


def save_sealed(path, value):
    """``save``, preceded by a digest of the content, so that ``load_sealed`` notices damage. Not for exchange."""
    content = _serialized(value)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(hashlib.sha256(content).digest())
        file.write(content)


def load_sealed(path):
    """The value that ``save_sealed`` wrote. Raises ``UserError`` when the file is missing or damaged."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        raise UserError(f"{path} does not have the digest it was written with; it is damaged")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def load(path, device="cpu"):
    """The dict in the checkpoint file ``path``. Raises ``UserError`` when it is none, or holds anything but data."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on foreign files; what matters is raised below
            value = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is no checkpoint that can be trusted: it is damaged or holds objects other than "
                        "tensors and plain values; get it again, or save its state dict anew") from error
    except Exception as error:  # on damaged files the unpickler raises whatever its parts raise: fuzzing finds ever more kinds
        raise UserError(f"{path} is no checkpoint or is damaged ({type(error).__name__}); "
                        "get it again or train the stage that writes it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(value).__name__}, not a dict with the key 'model'")
    return value


def load_model(model, path, device="cpu"):
    """Load the weights in the checkpoint ``path`` into ``model`` by name, and return the whole checkpoint dict.

    Raises ``UserError`` when the file has other classes, another network, or values that are not finite.
    """
    checkpoint = load(path, device)
    state = checkpoint.get("model")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} is no checkpoint of this software: it has no dict of tensors under the key 'model'; "
                        "COCO weights are converted by prepare_coco.sh, ImageNet weights are given with --weights")
    own = model.state_dict()
    head = "classifier.0.convs.0.bias"
    if head in state and head in own and state[head].shape != own[head].shape:
        raise UserError(f"{path} was trained for {len(state[head])} classes, but the dataset has {len(own[head])}; "
                        "give the checkpoint of this dataset or the dataset of this checkpoint")
    lacking = sorted(name for name in own if name not in state and not name.endswith("num_batches_tracked"))
    surplus = sorted(name for name in state if name not in own)
    shapes = sorted(name for name in own if name in state and own[name].shape != state[name].shape)
    if lacking or surplus or shapes:
        example = (lacking or surplus or shapes)[0]
        raise UserError(f"{path} holds another network: {len(lacking)} tensors are missing, {len(surplus)} are unknown "
                        f"and {len(shapes)} have another shape (for example {example}); choose the right --backbone")
    if not all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point()):
        raise UserError(f"{path} holds values that are not finite (NaN or infinity); its training went wrong: "
                        "train that stage again with a smaller --lr")
    model.load_state_dict(state, strict=False)
    return checkpoint

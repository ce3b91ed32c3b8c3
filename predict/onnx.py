"""Networks in ONNX files, run by onnxruntime: those of ``predict.export``, and others that describe themselves."""

import importlib
import json

import numpy as np
import torch

from models.description import KINDS, said
from models.deeplab import InputFormat
from utils.errors import UserError
from utils.files import fits

_ANEW = "export it anew with python -m tools.export"


class OnnxNetwork:
    """A network in an ONNX file, run on the CPU; ``values`` are what its metadata says of it, all that is needed.

    onnxruntime gets as many threads as torch has, so it respects OMP_NUM_THREADS.
    """

    def __init__(self, path):
        """Raises ``UserError`` when the file is missing, no ONNX file, or not one that describes itself."""
        self.path = path
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a busy machine needs the core
        options.log_severity_level = 4  # its remarks; what matters is raised
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"],
                                                     enable_fallback=0)
            # Everything is fetched here, since a damaged text shows only then.
            inputs, outputs = ([(part.name, part.type, part.shape) for part in parts]
                               for parts in (self._session.get_inputs(), self._session.get_outputs()))
            metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # onnxruntime's own kinds
            raise UserError(f"{path} is no ONNX file that onnxruntime {runtime.__version__} can run, or it is damaged "
                            f"({type(error).__name__}); {_ANEW}") from error
        self.values = _said(metadata, path)
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0][2][1:2] != [3] or any(
                kind != "tensor(float)" or len(shape) != 4 for _, kind, shape in (*inputs, *outputs)):
            raise UserError(f"{path} is no segmentation network of this software: it must take images (N, 3, H, W) and "
                            "give logits (N, C, h, w), float32 both; give a file that tools.export made")
        self._input = inputs[0][0]

    def __call__(self, images):
        """Normalized ``images`` (N, 3, H, W) float32 on any device -> logits (N, C, h, w) float32 on the CPU.

        (h, w) is an eighth of (H, W), rounded up, or (H, W) itself where the file upsamples.
        Raises ``UserError`` when the file does not take images of this size or does not give such logits.
        """
        images, classes = np.ascontiguousarray(images.detach().cpu().float().numpy()), self.values["num_classes"]
        try:
            logits, = self._session.run(None, {self._input: images})
        except Exception as error:  # onnxruntime's own kinds; whatever it is, the file or the size is to blame
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} cannot be run on images of {images.shape[3]} x {images.shape[2]} pixels, "
                            f"{len(images)} at once ({reason:.200}); {_ANEW}") from error
        if not isinstance(logits, np.ndarray) or logits.ndim != 4 or logits.shape[:2] != (len(images), classes):
            raise UserError(f"{self.path} does not give one map for each of its {classes} classes; {_ANEW}")
        return torch.from_numpy(np.asarray(logits, np.float32))


def _said(strings, path):
    """``models.description.said`` of the metadata of the file ``path``: ``strings`` maps keys to JSON.

    Raises ``UserError`` when the file was not exported by this software or the metadata is damaged.
    """
    try:
        values = {key: json.loads(strings[key]) for key in (*KINDS, "preprocessing") if key in strings}
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"the metadata of {path} is damaged ({type(error).__name__}); {_ANEW}") from error
    lacking = [key for key in ("num_classes", "class_names", "palette", "preprocessing") if key not in values]
    if lacking:
        raise UserError(f"{path} does not say what it is ({lacking[0]} is not in its metadata); give a file that "
                        "tools.export made")
    how, name = values["preprocessing"], str(values.pop("input_format", "own"))[:80]
    if not (isinstance(how, dict) and how.get("channels") in ("RGB", "BGR") and fits(how.get("range"), float)
            and how["range"] > 0 and fits(how.get("mean"), KINDS["mean"]) and fits(how.get("std"), KINDS["std"])
            and min(how["std"]) > 0):
        raise UserError(f"{path} does not say how its input is normalized (channels, range, mean and std in its "
                        f"metadata); {_ANEW}")
    form = InputFormat(name, how["channels"] == "RGB", float(how["range"]), tuple(map(float, how["mean"])),
                       tuple(map(float, how["std"])))
    usual = {"backbone": "resnet101", "aspp_branches": 2}  # of files from elsewhere
    return {**usual, **said(values, path), "input_format": form}


def needed(package):
    """The module ``package``. Raises ``UserError`` saying how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"this needs the package {package}, which cannot be imported ({error}); "
                        f"install it: pip install {package}") from error

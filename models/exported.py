"""Networks outside of this software: ONNX and torch.export files, written, compared with the network, and run."""

import contextlib
import importlib
import io
import json
import logging
import os
import re
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.deeplab import upsample
from models.description import describe_exported
from models.encoder import Encoder
from utils.errors import UserError
from utils.files import write_bytes

OPSET = 18
TOLERANCE = 1e-4  # of the largest logit: float32 arithmetic in another order
_TRACED = (65, 97)  # height and width, different and none special
_COMPARED = ((1, 65, 65), (2, 64, 97), (3, 129, 33), (1, 9, 9), (1, 200, 321))  # (N, H, W)
COMPARED = len(_COMPARED)


class OnnxNetwork:
    """A network in an ONNX file of ``tools/export.py``, run by onnxruntime on the CPU.

    ``num_classes``, ``class_names``, ``palette`` (a tuple of RGB tuples), ``input_format``
    (``models.input_format.InputFormat``) and ``description`` come from the file's metadata. onnxruntime gets as many
    threads as torch has, so it respects OMP_NUM_THREADS.
    """

    def __init__(self, path):
        """Raises ``UserError`` when the file is missing, no ONNX file, or not one that describes itself."""
        self.path = path
        self._session, inputs, outputs, metadata = _opened(path)
        self.description = describe_exported(metadata, path)
        self.num_classes = self.description.num_classes
        self.class_names = self.description.class_names
        self.palette = self.description.palette
        self.input_format = self.description.input_format
        self._input = _only_input(inputs, outputs, path)

    def __call__(self, images):
        """Normalized ``images`` (N, 3, H, W) float32 on any device -> logits (N, C, h, w) float32 on the CPU.

        (h, w) is an eighth of (H, W), rounded up, or (H, W) itself where the file upsamples.
        Raises ``UserError`` when the file does not take images of this size or does not give such logits.
        """
        images = np.ascontiguousarray(images.detach().cpu().float().numpy())
        try:
            logits, = self._session.run(None, {self._input: images})
        except Exception as error:  # onnxruntime's own kinds; whatever it is, the file or the size is to blame
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} cannot be run on images of {images.shape[3]} x {images.shape[2]} pixels, "
                            f"{len(images)} at once ({reason:.200}); export it anew with tools/export.py") from error
        shape = (len(images), self.num_classes)
        if not isinstance(logits, np.ndarray) or logits.ndim != 4 or logits.shape[:2] != shape:
            raise UserError(f"{self.path} does not give one map for each of its {self.num_classes} classes; "
                            "export it anew with tools/export.py")
        return torch.from_numpy(np.asarray(logits, np.float32))


def _opened(path):
    """(session, inputs, outputs, metadata) of the file; the middle two are lists of (name, type, shape).

    Raises ``UserError`` when onnxruntime cannot open ``path``.
    """
    runtime = needed("onnxruntime")
    if not os.path.isfile(path):
        raise UserError(f"the network {path} is missing; export it with tools/export.py or correct the path")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a busy machine needs the core
    options.log_severity_level = 4  # its remarks; what matters is raised
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
        # Everything is fetched here, since a damaged text shows only then.
        inputs, outputs = ([(part.name, part.type, part.shape) for part in parts]
                           for parts in (session.get_inputs(), session.get_outputs()))
        return session, inputs, outputs, dict(session.get_modelmeta().custom_metadata_map)
    except Exception as error:  # onnxruntime's own kinds
        raise UserError(f"{path} is no ONNX file that onnxruntime {runtime.__version__} can run, or it is damaged "
                        f"({type(error).__name__}); export it anew with tools/export.py") from error


def _only_input(inputs, outputs, path):
    """The name of the input. Raises ``UserError`` when the file takes or gives anything but images and logits."""
    parts = [*inputs, *outputs]
    if len(inputs) != 1 or len(outputs) != 1 or any(kind != "tensor(float)" or len(shape) != 4
                                                    for _, kind, shape in parts) or inputs[0][2][1] != 3:
        raise UserError(f"{path} is no segmentation network of this software: it must take images (N, 3, H, W) and "
                        "give logits (N, C, h, w), float32 both; give a file that tools/export.py made")
    return inputs[0][0]


def needed(package):
    """The module ``package``. Raises ``UserError`` saying how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"this needs the package {package}, which cannot be imported ({error}); "
                        f"install it: pip install {package}") from error


class _Upsampled(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images):
        return upsample(self.network(images), images.shape[2:])


def with_size(network, upsampled):
    """``network`` itself, or followed by upsampling of its logits to the size of the images; in the mode it is in."""
    return _Upsampled(network) if upsampled else network


def trace(network, upsampled=False):
    """``network`` in eval mode as a ``torch.export.ExportedProgram`` for any batch, height and width.

    It takes normalized images (N, 3, H, W) float32 and gives logits (N, C, h, w), or (N, C, H, W) if ``upsampled``. The
    sides have two points at least: of one point torch.export would make a constant. Raises ``UserError`` for an encoder
    that it cannot follow.
    """
    network.eval().to(memory_format=torch.contiguous_format)  # else the order in memory becomes part of the graph
    try:
        return _traced(network, upsampled)
    except Exception as error:
        if isinstance(network.backbone, Encoder):
            raise _refusal("torch.export", error) from error
        # torch 2.11 believes that the rest of a division in max pooling is the same for every size
        strided, network.backbone.maxpool = network.backbone.maxpool, SlicedPool()
        try:
            return _traced(network, upsampled)
        finally:
            network.backbone.maxpool = strided


def _taken(side, traits):
    """About ``side`` pixels, as a backbone with ``traits`` takes them: any number, or so many points."""
    if traits.exact:
        return max(2, side // 8) * traits.output_stride
    return max(side, traits.smallest)


class SlicedPool(nn.Module):
    """ResNet's max pooling, 3x3 with stride 2, as one with stride 1 of which every second point is kept."""

    def forward(self, features):
        """``features`` (N, C, h, w) -> (N, C, ceil(h / 2), ceil(w / 2)), the same bits."""
        return F.max_pool2d(features, 3, stride=1, padding=1)[:, :, ::2, ::2]


def _refusal(exporter, error):
    """The ``UserError`` of a network that cannot be exported, with the reason."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(f"this network cannot be exported for images of any size: {exporter} does not follow its backbone "
                     f"({reason:.200}); give another --to, safetensors takes every network")


def _traced(network, upsampled):
    step, _, exact, _ = network.traits
    sizes = {0: torch.export.Dim("batch", min=1)}
    for axis, name in ((2, "height"), (3, "width")):
        side = torch.export.Dim(name, min=2 if exact else network.traits.smallest)
        sizes[axis] = step * side if exact else side
    images = torch.zeros(2, 3, *(_taken(side, network.traits) for side in _TRACED))
    deferred = isinstance(network.backbone, Encoder)  # torch cannot prove all that some do with sizes
    network = with_size(network, upsampled)
    with _quiet():
        program = torch.export.export(network, (images,), dynamic_shapes=(sizes,),
                                      prefer_deferred_runtime_asserts_over_guards=deferred)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_onnx(program, path, metadata):
    """Write ``program`` to ``path`` as one ONNX file; each of the plain values in the dict ``metadata`` as JSON."""
    needed("onnx")
    needed("onnxscript")
    try:
        with _quiet():
            model = torch.onnx.export(program, input_names=["images"], output_names=["logits"], dynamo=True,
                                      opset_version=OPSET, verbose=False).model_proto
    except Exception as error:  # operations that ONNX does not have, of some encoders
        raise _refusal("torch.onnx", error) from error
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]  # the exporter's notes; they name files of this machine
    del graph.value_info[:]
    symbols = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim if dim.dim_param]
    names = dict(zip(symbols, ("batch", "height", "width"), strict=True))
    for part in (*graph.input, *graph.output):
        for dim in part.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value, allow_nan=False))
    write_bytes(path, model.SerializeToString())


def write_program(program, path, metadata):
    """Write ``program`` to ``path`` for ``torch.export.load``; ``metadata`` becomes the extra file metadata.json."""
    content = io.BytesIO()
    extra = {"metadata.json": json.dumps(metadata, allow_nan=False)}
    try:
        with _quiet():
            torch.export.save(program, content, extra_files=extra)
    except Exception as error:  # it cannot write down every size that some encoders compute
        raise _refusal("torch.export.save", error) from error
    write_bytes(path, content.getvalue())


def read_program(path):
    """(function images -> logits, metadata) of a file that ``write_program`` wrote. Only for files that you trust."""
    extra = {"metadata.json": ""}
    with _quiet():
        return torch.export.load(path, extra_files=extra).module(), json.loads(extra["metadata.json"])


@torch.inference_mode()
def largest_difference(reference, exported, input_format, traits):
    """(largest difference of the logits, largest logit) of two networks, over random images of several sizes.

    Both take normalized images (N, 3, H, W) float32, as ``input_format`` makes them, of sides that a backbone with
    ``traits`` takes, and give logits of equal shapes. Not a number where either gives none.
    """
    generator = torch.Generator().manual_seed(0)
    differences, largest = [], []
    for count, *sides in _COMPARED:
        height, width = (_taken(side, traits) for side in sides)
        pixels = torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
        images = input_format.normalize(pixels)
        expected, found = reference(images), exported(images)
        if expected.shape != found.shape:
            return float("inf"), float(expected.abs().max())
        differences.append((expected - found).abs().max())
        largest.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(largest).max())


@contextlib.contextmanager
def _quiet():
    """Without the exporters' remarks on themselves. What goes wrong is raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)

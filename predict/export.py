"""A trained network as a file for use elsewhere: ONNX, torch.export or safetensors, checked before it gets its name."""

import contextlib
import io
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from models.deeplab import upsample
from predict.network import load
from predict.onnx import OnnxNetwork, needed
from utils.checkpoints import save_safetensors
from utils.errors import UserError
from utils.files import replacing, sha256, write_bytes
from utils.runs import software

OPSET = 18
TOLERANCE = 1e-4  # of the largest logit: float32 arithmetic in another order
_TRACED = (65, 97)  # height and width, different and none special
_COMPARED = ((1, 65, 65), (2, 64, 97), (3, 129, 33), (1, 9, 9), (1, 200, 321))  # (N, H, W)


def export(path, target, kind, upsampled=False, dataset=None, coco=None, aspp_branches=None):
    """Export the checkpoint ``path`` to ``target``, checked before it gets this name. Prints what it did.

    ``kind`` is onnx, torch-export or safetensors; with ``upsampled`` the file brings logits to the size of the images.
    ``dataset``, ``coco`` and ``aspp_branches`` answer for old checkpoints (see ``predict.load``). Raises ``UserError``.
    """
    path = Path(path)
    member, = load(path, dataset=dataset, coco=coco, aspp_branches=aspp_branches, device="cpu").members
    network, description = member.network, member.description
    if description.assumed:
        print(f"note: {path} does not say everything; assumed: {', '.join(description.assumed)}", file=sys.stderr)
    print(f"{path}: {description.backbone}, {description.aspp_branches} ASPP branches, "
          f"{description.num_classes} classes, input format {description.input_format.name}, "
          f"dataset {description.name}", flush=True)
    values = {**description.values(), "checkpoint": path.name, "checkpoint_sha256": sha256(path),
              "exported_with": software()}
    with replacing(target) as temporary:
        if kind == "safetensors":
            save_safetensors(temporary, network.state_dict(), values)
        else:
            _write_graph(temporary, kind, network, description, upsampled,
                         {**values, **how_to_use(description, upsampled)})
    print(f"wrote {target} ({Path(target).stat().st_size / 1e6:.1f} MB)")


def _write_graph(path, kind, network, description, upsampled, metadata):
    """Write the network, compare the file with it, and print how far they differ."""
    size = "height, width" if upsampled else network.traits.map_size("height", "width")
    print(f"images (batch, 3, height, width) float32 -> logits (batch, {network.num_classes}, {size}) float32",
          flush=True)
    network.to(memory_format=torch.contiguous_format)  # else the order in memory becomes part of the graph
    computes = _Upsampled(network) if upsampled else network
    program = trace(computes, network)
    if kind == "onnx":
        write_onnx(program, path, metadata)
        run, runtime = OnnxNetwork(path), f"onnxruntime {needed('onnxruntime').__version__}"
    else:
        write_program(program, path, metadata)
        (run, _), runtime = read_program(path), f"torch {torch.__version__}"
    difference, largest = largest_difference(computes, run, description.input_format, network.traits)
    if not difference <= TOLERANCE * largest:  # not a number is not good, either
        raise UserError(f"the exported network differs from the checkpoint's by up to {difference:.2g}, with logits up "
                        f"to {largest:.3g}, when run by {runtime}: more than {TOLERANCE:g} of the largest, so "
                        "nothing was written; are its weights those of a training that went well?")
    print(f"checked with {runtime} on {len(_COMPARED)} sizes: largest difference {difference:.2g}, with logits up to "
          f"{largest:.3g} (allowed: {TOLERANCE * largest:.2g})")


def how_to_use(description, upsampled):
    """What a file says of its use elsewhere, as plain values: how images are prepared and logits decide."""
    form, traits = description.input_format, description.traits
    size = f"height and width are multiples of {traits.output_stride}" if traits.exact else "any height and width"
    size += f", at least {traits.smallest}"
    if description.test_size:
        how = {"pad": "padded at the bottom and right with black (0, before normalization) to",
               "resize": "resized to"}.get(description.test_by, "brought to")
        size += f"; validated with images {how} test_size [height, width]"
    return {
        "preprocessing": {
            "input": "images", "layout": "NCHW", "dtype": "float32", "channels": "RGB" if form.rgb else "BGR",
            "range": form.full, "mean": list(form.mean), "std": list(form.std),
            "formula": "(pixel / 255 * range - mean) / std, for each channel, in that order, pixel from 0 to 255",
            "size": size},
        "postprocessing": {
            "output": "logits", "layout": "NCHW, one channel a class", "dtype": "float32",
            "stride": 1 if upsampled else traits.output_stride,
            "size": "as the input" if upsampled else f"{traits.map_size('height', 'width')} of the input",
            "upsample": "done in the graph" if upsampled else "bilinear with aligned corners, to the size of the input",
            "decide": "class = argmax over the channels; confidence = its softmax"}}


# --- the graph --------------------------------------------------------------------------------------------------------


class _Upsampled(nn.Module):
    """A network in eval mode, followed by upsampling of its logits to the size of the images."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images):
        return upsample(self.network(images), images.shape[2:])


def trace(computes, network):
    """``computes``, the ``network`` or more, as a ``torch.export.ExportedProgram`` for any batch, height and width.

    It takes normalized images (N, 3, H, W) float32 and gives logits. The sides have two points of the map at least: of
    one point torch.export would make a constant. Raises ``UserError`` for an encoder that it cannot follow.
    """
    traits = network.traits
    sizes = {0: torch.export.Dim("batch", min=1)}
    for axis, name in ((2, "height"), (3, "width")):
        side = torch.export.Dim(name, min=2 if traits.exact else traits.smallest)
        sizes[axis] = traits.output_stride * side if traits.exact else side
    images = torch.zeros(2, 3, *(_taken(side, traits) for side in _TRACED))
    deferred = not network.foldable  # torch cannot prove all that some do with sizes
    with _exporting("torch.export"):
        program = torch.export.export(computes, (images,), dynamic_shapes=(sizes,),
                                      prefer_deferred_runtime_asserts_over_guards=deferred)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _taken(side, traits):
    """About ``side`` pixels, as a backbone with ``traits`` takes them: any number, or so many points."""
    return max(2, side // 8) * traits.output_stride if traits.exact else max(side, traits.smallest)


def write_onnx(program, path, metadata):
    """Write ``program`` to ``path`` as one ONNX file; each of the plain values in the dict ``metadata`` as JSON."""
    needed("onnx")
    needed("onnxscript")
    with _exporting("torch.onnx"):
        model = torch.onnx.export(program, input_names=["images"], output_names=["logits"], dynamo=True,
                                  opset_version=OPSET, verbose=False,
                                  dynamic_shapes=({0: "batch", 2: "height", 3: "width"},)).model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]  # the exporter's notes; they name files of this machine
    del graph.value_info[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value, allow_nan=False))
    write_bytes(path, model.SerializeToString())


def write_program(program, path, metadata):
    """Write ``program`` to ``path`` for ``torch.export.load``; ``metadata`` becomes the extra file metadata.json."""
    content = io.BytesIO()
    extra = {"metadata.json": json.dumps(metadata, allow_nan=False)}
    with _exporting("torch.export.save"):
        torch.export.save(program, content, extra_files=extra)
    write_bytes(path, content.getvalue())


def read_program(path):
    """(function images -> logits, metadata) of a file that ``write_program`` wrote. Only for files that you trust."""
    extra = {"metadata.json": ""}
    with _exporting("torch.export.load"):
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
def _exporting(exporter):
    """Without the exporter's remarks on itself; what it cannot do becomes a ``UserError``."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:  # sizes that it cannot follow or write down, operations that it lacks, of some encoders
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"this network cannot be exported for images of any size: {exporter} does not follow its "
                        f"backbone ({reason:.200}); give another --to, safetensors takes every network") from error
    finally:
        logging.disable(disabled)

"""Feed damaged and made-up files to every reader: each must accept them or raise ``UserError``, and quickly.

    python -m benchmarks.fuzz --seconds 60

Inputs come from hypothesis: made-up bytes and texts, and whole files with bytes changed, cut out, doubled or put in.
"""

import argparse
import collections
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from PIL import Image

SUFFIXES = {"spec": "yaml", "safetensors": "safetensors"}  # where a reader looks at it
SLOW = 5.0  # seconds after which an input counts as a hang


def whole_files(folder):
    """One good file for each reader, by name, with the function that reads it: {name: (bytes, reader)}."""
    import io

    import torch
    from data import images
    from data.lists import read_list
    from data.specs import BUILT_IN, load_spec
    from data.store import PseudoLabelStore
    from predict.onnx import OnnxNetwork
    from utils.checkpoints import load, save_safetensors
    from utils.files import read_json, write_json

    spec = load_spec("shapes")
    store = PseudoLabelStore(folder / "store", spec.palette)
    labels = np.random.default_rng(0).integers(0, 8, (24, 31)).astype(np.uint8)
    store.write_label("x", labels, np.full(labels.shape, 200, np.uint8))
    store.write_logits("x", np.zeros((8, 4, 4), np.uint16), (24, 31), (4, 4))
    store.write_manifest({"dataset": "shapes"})
    write_json(folder / "result.json", {"miou": 0.5})
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 31, 3)).astype(np.uint8))
    files = {}
    for suffix in ("JPEG", "PNG", "TIFF", "WEBP", "BMP"):
        content = io.BytesIO()
        picture.save(content, suffix)
        files[f"image {suffix}"] = (content.getvalue(), images.read_image)
    checkpoint = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(4, 3)}, "optimizer": None}, checkpoint)
    save_safetensors(folder / "whole.safetensors", {"weight": torch.ones(4, 3)}, {"miou": 0.5})
    label, grey, logits = store.label_path("x"), store.confidence_path("x"), store.logits_path("x")

    def through_store(path, read):
        def reader(file):
            path.write_bytes(file.read_bytes())
            read()
        return reader

    return {**files, "mask": (label.read_bytes(), lambda file: images.read_mask(file, spec)),
            "list": (b"2007_000032\n2007_000039\naachen/aachen_000000\n", read_list),
            "spec": ((BUILT_IN / "city.yaml").read_bytes(), load_spec),
            "checkpoint": (checkpoint.getvalue(), load),
            "safetensors": ((folder / "whole.safetensors").read_bytes(), load),
            "ONNX": (onnx_file(), OnnxNetwork),
            "result": ((folder / "result.json").read_bytes(), read_json),
            "pseudo label": (label.read_bytes(), through_store(label, lambda: store.read_label("x"))),
            "confidence": (grey.read_bytes(), through_store(grey, lambda: store.read_label("x"))),
            "prediction": (logits.read_bytes(), through_store(logits, lambda: store.read_logits("x"))),
            "manifest": ((store.folder / "manifest.json").read_bytes(),
                         through_store(store.folder / "manifest.json", store.read_manifest))}


def onnx_file():
    """An ONNX file that gives its input back and says that it is a network of three classes."""
    from onnx import TensorProto, helper

    shape, name = ("batch", 3, "height", "width"), ("images", "logits")
    values = [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one in name]
    graph = helper.make_graph([helper.make_node("Identity", name[:1], name[1:])], "network", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {
        "num_classes": "3", "class_names": '["soil", "crop", "weed"]', "palette": "[[0,0,0],[0,160,0],[200,0,0]]",
        "test_size": "[65,81]", "recipe": '{"lr":0.1}', "miou": "0.5",
        "preprocessing": '{"channels":"RGB","range":1.0,"mean":[0,0,0],"std":[1,1,1]}'})
    return model.SerializeToString()


@st.composite
def damaged(draw, content):
    """``content`` with a few places changed, or something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)))
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.integers(0, 3))
        if kind == 0 and content:
            content[place] ^= draw(st.integers(1, 255))
        elif kind == 1:
            del content[place : place + draw(st.integers(1, len(content) + 1))]
        elif kind == 2:
            content[place:place] = draw(st.binary(max_size=16))
        else:
            content[place:place] = content[place : place + 64]
    return bytes(content)


def fuzz(seconds, folder):
    """Try inputs for about ``seconds``; returns {reader: {"tried", "refused", "slowest"}} and a list of failures."""
    from utils.errors import UserError
    from PIL import Image as pillow
    pillow.MAX_IMAGE_PIXELS = None
    warnings.simplefilter("ignore")
    figures, failures = {}, []
    files = whole_files(folder)
    for name, (content, reader) in files.items():
        count = collections.Counter()
        path = folder / f"input.{SUFFIXES.get(name, 'png')}"
        deadline, slowest = time.monotonic() + seconds / len(files), [0.0]

        @settings(max_examples=200, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(damaged(content))
        def attempt(data):
            path.write_bytes(data)
            began = time.monotonic()
            try:
                reader(path)
            except UserError as error:
                count["refused"] += 1
                if "\n" in str(error).strip() and len(str(error)) > 4000:
                    failures.append((name, data.hex(), "message without end"))
            except BaseException as error:  # anything else would have been a traceback
                failures.append((name, data.hex(), repr(error)))
            count["tried"] += 1
            slowest[0] = max(slowest[0], time.monotonic() - began)

        while time.monotonic() < deadline and len(failures) < 20:
            attempt()
        if slowest[0] > SLOW:
            failures.append((name, "", f"took {slowest[0]:.1f} s"))
        figures[name] = {"tried": count["tried"], "refused": count["refused"], "slowest_seconds": round(slowest[0], 3)}
    return figures, failures


def main():
    """Fuzz, print a table, save the figures as JSON; exit status 1 when anything but ``UserError`` came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, failures = fuzz(options.seconds, Path(folder))
    for name, figure in figures.items():
        print(f"{name:14} {figure['tried']:7} tried {figure['refused']:7} refused, slowest {figure['slowest_seconds']} s")
    print(f"{sum(figure['tried'] for figure in figures.values())} inputs, {len(failures)} failures")
    for name, data, what in failures[:20]:
        print(f"{name}: {what}\n    {data[:400]}")
    from benchmarks.measure import save
    save("fuzz", {"seconds": options.seconds, "readers": figures, "failures": failures})
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()

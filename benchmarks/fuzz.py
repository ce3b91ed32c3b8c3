"""Feed damaged and made-up files to every reader: each must accept them or raise ``UserError``, and quickly.

    python -m benchmarks.fuzz --seconds 60

Inputs are whole files with bytes changed, cut out, put in or doubled, and now and then bytes of no meaning.
"""

import argparse
import collections
import io
import random
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper
from PIL import Image

from benchmarks.measure import save
from data import images
from data.lists import read_list
from data.specs import BUILT_IN, load_spec
from data.store import PseudoLabelStore
from predict.onnx import OnnxNetwork
from utils.checkpoints import load, save_safetensors
from utils.errors import UserError

SLOW = 10.0  # seconds of this process after which an input counts as a hang


def whole_files(folder):
    """One good file for each reader, by name, with the function that reads it: {name: (path, reader of that path)}."""
    spec, random_numbers = load_spec("shapes"), np.random.default_rng(0)
    store = PseudoLabelStore(folder / "store", spec.palette)
    labels = random_numbers.integers(0, 8, (24, 31)).astype(np.uint8)
    store.write_label("x", labels, np.full(labels.shape, 200, np.uint8))
    store.write_logits("x", np.zeros((8, 4, 4), np.uint16), (24, 31), (4, 4))
    store.write_manifest({"dataset": "shapes"})
    files = {"pseudo label": (store.label_path("x"), lambda path: store.read_label("x")),
             "confidence": (store.confidence_path("x"), lambda path: store.read_label("x")),
             "logits": (store.logits_path("x"), lambda path: store.read_logits("x")),
             "manifest": (store.folder / "manifest.json", lambda path: store.read_manifest())}
    picture = Image.fromarray(random_numbers.integers(0, 255, (24, 31, 3)).astype(np.uint8))
    for suffix in ("jpg", "png", "tif", "webp", "bmp"):
        picture.save(folder / f"image.{suffix}")
        files[f"image {suffix}"] = folder / f"image.{suffix}", images.read_image
    save_safetensors(folder / "whole.safetensors", {"weight": torch.ones(4, 3)}, {"miou": 0.5})
    files["safetensors"] = folder / "whole.safetensors", load
    checkpoint = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(4, 3)}, "optimizer": None}, checkpoint)
    for name, content, reader in (
            ("mask.png", store.label_path("x").read_bytes(), lambda path: images.read_mask(path, spec)),
            ("list.txt", b"2007_000032\n2007_000039\naachen/aachen_000000\n", read_list),
            ("spec.yaml", (BUILT_IN / "city.yaml").read_bytes(), load_spec),
            ("checkpoint.pt", checkpoint.getvalue(), load), ("network.onnx", onnx_file(), OnnxNetwork)):
        (folder / name).write_bytes(content)
        files[name.partition(".")[0]] = folder / name, reader
    return files


def onnx_file():
    """An ONNX file that gives its input back and says that it is a network of three classes."""
    shape, name = ("batch", 3, "height", "width"), ("images", "logits")
    values = [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one in name]
    graph = helper.make_graph([helper.make_node("Identity", name[:1], name[1:])], "network", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {
        "num_classes": "3", "class_names": '["soil", "crop", "weed"]', "palette": "[[0,0,0],[0,160,0],[200,0,0]]",
        "test_size": "[65,81]", "recipe": '{"lr":0.1}', "miou": "0.5",
        "preprocessing": '{"channels":"RGB","range":1.0,"mean":[0,0,0],"std":[1,1,1]}'})
    return model.SerializeToString()


def damaged(draw, content):
    """``content`` (bytes) with a few places changed by ``draw`` (a ``random.Random``), or something else altogether."""
    if draw.random() < 0.1:
        return draw.randbytes(draw.randrange(400))
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(content) + 1)
        kind = draw.choice(("change", "cut", "put in", "double"))
        if kind == "change":
            content[place : place + 1] = draw.randbytes(1)
        elif kind == "cut":
            del content[place : place + draw.randint(1, len(content) + 1)]
        elif kind == "put in":
            content[place:place] = draw.randbytes(draw.randrange(16))
        else:
            content[place:place] = content[place : place + 64]
    return bytes(content)


def fuzz(seconds, folder, seed=0):
    """Try inputs for about ``seconds``; returns {reader: {"tried", "refused", "slowest"}} and a list of failures."""
    warnings.simplefilter("ignore")
    draw, figures, failures = random.Random(seed), {}, []
    files = whole_files(folder)
    for name, (path, reader) in files.items():
        count, slowest, content = collections.Counter(), 0.0, path.read_bytes()
        deadline = time.monotonic() + seconds / len(files)
        while (time.monotonic() < deadline or count["tried"] < 100) and len(failures) < 20:
            data = damaged(draw, content)
            path.write_bytes(data)
            began = time.process_time()
            try:
                reader(path)
            except UserError as error:
                count["refused"] += 1
                if len(str(error)) > 4000:
                    failures.append((name, data.hex(), "message without end"))
            except BaseException as error:  # anything else would have been a traceback
                failures.append((name, data.hex(), repr(error)))
            count["tried"] += 1
            slowest = max(slowest, time.process_time() - began)
        path.write_bytes(content)
        if slowest > SLOW:
            failures.append((name, "", f"took {slowest:.1f} s"))
        figures[name] = {**count, "slowest_seconds": round(slowest, 3)}
    return figures, failures


def main():
    """Fuzz, print a table, save the figures as JSON; exit status 1 when anything but ``UserError`` came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, failures = fuzz(options.seconds, Path(folder), options.seed)
    for name, figure in figures.items():
        print(f"{name:14} {figure['tried']:7} tried {figure['refused']:7} refused, "
              f"slowest {figure['slowest_seconds']} s")
    print(f"{sum(figure['tried'] for figure in figures.values())} inputs, {len(failures)} failures")
    for name, data, what in failures[:20]:
        print(f"{name}: {what}\n    {data[:400]}")
    save("fuzz", {"seconds": options.seconds, "readers": figures, "failures": failures})
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()

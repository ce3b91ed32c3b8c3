"""What a GPU does otherwise than a CPU: its pieces compared here, and the whole where there is a GPU."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from data.store import PseudoLabelStore
from data.datasets import WholeImages
from data.specs import load_spec
from dmt import label_stage, prediction
from dmt.evaluation import evaluate
from dmt.prediction import dequantize, quantize
from dmt.session import Machine
from dmt.thresholds import ConfidenceHistogram
from dmt.training import Trainer
from models import deeplab_v2
from tests.test_stages import SMALL, first_weights, label, tensors
from utils.errors import UserError
from utils.metrics import ConfusionMatrix, count_apart
from utils.precision import Precision
from utils.tensors import Replay, upload


@pytest.mark.parametrize("at_once", [1, 2**26])
@pytest.mark.parametrize("test_size, map_size", [((65, 65), (9, 9)), ((50, 70), (7, 9))])
def test_a_batch_is_decided_as_each_part_of_a_map_is(test_size, map_size, at_once, monkeypatch):
    """To the bit: a labelling that goes on finds of a map only the part that its image needs."""
    monkeypatch.setattr(prediction, "_AT_ONCE", at_once)
    logits = dequantize(quantize(4 * torch.randn(3, 5, *map_size, generator=torch.Generator().manual_seed(0))))
    sizes = [(50, 65), (33, 9), (1, 1)]
    found, whole = prediction.classify(logits, sizes, test_size), prediction.winners(logits, test_size)
    for number, ((classes, confidence), size) in enumerate(zip(found, sizes)):
        rows, columns = prediction.covering(size, test_size, map_size)
        part = torch.zeros_like(logits[number])
        part[:, :rows, :columns] = logits[number, :, :rows, :columns]
        (own, sure), = prediction.classify(part[None], [size], test_size)
        assert torch.equal(own, classes) and torch.equal(sure, confidence)
        assert torch.equal(whole[number, : size[0], : size[1]], classes)
        pixels = torch.nn.functional.interpolate(logits[number][None], test_size, mode="bilinear", align_corners=True)
        expected = pixels.softmax(1)[0, :, : size[0], : size[1]].max(0).values
        assert classes.shape == size and torch.allclose(confidence, expected, atol=2**-16)


@pytest.mark.parametrize("size, count", [(7, 1000), (3, 5), (443, 64)])
def test_counting_apart_is_counting(size, count):
    cells = torch.from_numpy(np.random.default_rng(0).integers(0, size, count))
    assert torch.equal(count_apart(cells, size), torch.bincount(cells, minlength=size))


def test_predictions_come_back_as_they_were_stored(tmp_path):
    store = PseudoLabelStore(tmp_path)
    steps = np.random.default_rng(0).integers(0, 65536, (3, 5, 7)).astype(np.uint16)
    store.write_logits("a/b", steps, (33, 49), (9, 9))
    found, size = store.read_logits("a/b")
    assert size == (33, 49) and (found == np.pad(steps, ((0, 0), (0, 4), (0, 2)))).all()


def test_labels_are_images_that_any_viewer_opens(tmp_path):
    store = PseudoLabelStore(tmp_path, [(0, 0, 0), (9, 8, 7)])
    labels, grey = np.uint8([[0, 1, 255], [1, 1, 0]]), np.uint8([[3, 200, 0], [1, 2, 255]])
    store.write_label("a/b", labels, grey)
    assert [part.tolist() for part in store.read_label("a/b")] == [labels.tolist(), grey.tolist()]
    with Image.open(store.label_path("a/b")) as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((1, 0)) == (9, 8, 7)


def test_compiled_blocks_are_the_same_network_with_the_same_names():
    torch.manual_seed(0)
    plain = deeplab_v2(4, "small").eval()
    compiled = deeplab_v2(4, "small").eval()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_blocks(backend="eager")  # the real one needs minutes here
    assert list(compiled.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(compiled(images), plain(images))


def test_what_a_step_changes_stays_where_it_is(shapes_root, tmp_path, command, monkeypatch):
    """A CUDA graph writes to the places it was recorded with: through epochs, logging, validation and saving."""
    places, original = [], Trainer._learn

    def learn(self, *batch):
        original(self, *batch)
        optimizer = [value["momentum_buffer"] for value in self.optimizer.state.values()]
        kept = [self.counts._sums, self.counts._bad_step, self.counts._steps, *self.model.state_dict().values(), *optimizer]
        places.append([tensor.data_ptr() for tensor in kept])

    monkeypatch.setattr(Trainer, "_learn", learn)
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                "--epochs=3", "--batch-size-labeled=4", "--val-num-steps=2", "--log-num-steps=1",
                                f"--output-dir={tmp_path}", "--test-size", 65, 65, "--device=cpu", *SMALL)
    assert status == 0, errors
    assert len(places) == 6 and all(place == places[0] for place in places)


@pytest.mark.parametrize("words, graphs", [
    ([], True), (["--no-cuda-graphs"], False), (["--max-memory=8"], False), (["--max-memory=8", "--cuda-graphs"], True)])
def test_what_is_recorded_by_default(words, graphs, shapes_root, tmp_path, command, monkeypatch):
    seen = []
    monkeypatch.setattr(label_stage, "run", lambda setting, *_: seen.append(setting.machine))
    first_weights(tmp_path / "net.pt", 8)
    assert label(command, shapes_root, tmp_path, "net.pt", tmp_path / "labels", *words)[0] == 0
    assert [machine.graphs for machine in seen] == [graphs]
    assert not torch.backends.cudnn.benchmark  # a search of algorithms brought 3 % and took 14 s a stage


def test_a_recording_that_fails_leaves_no_half_graph(monkeypatch):
    """The next call tries again, and says again what is wrong."""
    class Recording:
        def __init__(self, graph, capture_error_mode):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            raise RuntimeError("cannot be captured")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    calls = []
    replay = Replay(calls.append, "cuda", record=True)
    for _ in range(3):
        replay(1)
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be captured.*--no-cuda-graphs"):
            replay(1)
    replay(2)  # of another shape: computed without a graph
    assert calls[-1] == 2


@pytest.fixture
def pretended(monkeypatch):
    """CUDA graphs that compute when they are replayed, 100 bytes each; ``free[0]`` bytes are free beside them."""
    reserved, free = [0], [1000]

    class Recording:
        def __init__(self, graph, capture_error_mode):
            self.graph = graph

        def __enter__(self):
            pass

        def __exit__(self, *error):
            reserved[0] += 100

    class Graph:
        count = 0

        def replay(self):
            Graph.count += 1

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 5000))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Graph, free


@pytest.mark.parametrize("served, again", [(120, True), (5, False)])
def test_a_graph_gives_way_where_memory_is_short(served, again, pretended):
    """To a batch of another shape; it is recorded again if it had served for long."""
    graph, free = pretended
    calls = []
    replay = Replay(calls.append, "cuda", record=True)
    for _ in range(4 + served):
        replay(1)
    assert graph.count == 1 + served and len(calls) == 4  # the fourth is recorded, then replayed
    replay(2)
    replay(1)
    assert calls == [1] * 4 + [2] and graph.count == 2 + served  # there was room for both
    free[0] = 99
    replay(2)
    for _ in range(10):
        replay(1)
    assert calls[5:] == [2] + [1] * (4 if again else 10)
    assert graph.count == 2 + served + (7 if again else 0)


def test_on_a_cpu_nothing_is_recorded_nor_copied():
    calls, tensor = [], torch.ones(2)
    replay = Replay(lambda *arguments: calls.append(arguments), "cpu", record=True)
    for _ in range(6):
        replay(tensor, 3)
    assert len(calls) == 6 and calls[0][0] is tensor
    assert upload(torch.device("cpu"), tensor)[0] is tensor


# --- with a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_replayed_call_computes_with_its_own_arguments():
    total = torch.zeros((), device="cuda")

    def add(values, factor):
        total.add_((values * factor).sum())
        return values + 1

    replay = Replay(add, "cuda", record=True)
    for number in range(1, 9):
        values = torch.full((3,), float(number), device="cuda")
        assert replay(values, 2).tolist() == [number + 1] * 3
        assert replay(values[:2], 2).tolist() == [number + 1] * 2  # another shape, recorded or not
    assert total.item() == 2 * 5 * sum(range(1, 9))


@pytest.mark.gpu
def test_a_graph_that_gave_way_is_recorded_again(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    total = torch.zeros((), device="cuda", dtype=torch.float64)  # float32 cannot count so far
    replay = Replay(lambda values: total.add_((values @ values).sum()), "cuda", record=True)
    expected = 0
    for number in range(260):
        size = 3 if number == 130 else 64
        replay(torch.ones(size, size, device="cuda"))
        expected += size**3
    assert total.item() == expected and replay._graph is not None


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [[], ["--mixed-precision"], ["--mixed-precision", "--amp-dtype=bf16"]])
def test_graphs_train_as_well_as_steps_one_by_one(amp, shapes_root, tmp_path, command):
    """Full batches and an incomplete last one."""
    for name, more in {"eager": ["--no-cuda-graphs"], "graphs": []}.items():
        status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                    "--epochs=5", "--batch-size-labeled=3", "--val-num-steps=5", "--device=cuda",
                                    f"--output-dir={tmp_path}", "--test-size", 65, 65, f"--exp-name={name}", *SMALL,
                                    *amp, *more)
        assert status == 0, errors
    eager, graphs = tensors(tmp_path / "eager.pt"), tensors(tmp_path / "graphs.pt")
    assert list(eager) == list(graphs)
    for name, value in eager.items():
        if value.is_floating_point():
            assert (value - graphs[name]).norm() <= 0.02 * value.norm() + 1e-3, name


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [[], ["--no-cuda-graphs"]])
def test_no_synchronization_in_a_whole_step_on_a_gpu(graphs, shapes_root, tmp_path, command, monkeypatch):
    """Of transfer, network, loss, scaler, optimizer and sums; the first steps allocate, choose algorithms and record."""
    original, steps = Trainer.step, []

    def step(self, *batch):
        batch = [part.pin_memory() if isinstance(part, torch.Tensor) else part for part in batch]
        torch.cuda.set_sync_debug_mode("error" if len(steps) >= 4 else "default")
        try:
            original(self, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        steps.append(batch)

    monkeypatch.setattr(Trainer, "step", step)
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                "--epochs=5", "--batch-size-labeled=4", "--device=cuda", "--mixed-precision",
                                f"--output-dir={tmp_path}", "--test-size", 65, 65, *SMALL, *graphs)
    assert status == 0 and len(steps) == 10, errors


@pytest.mark.gpu
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_a_gpu_labels_as_a_cpu_does(statistics, shapes_root, tmp_path, command):
    """Both passes and PLE. The GPU's convolutions round otherwise; whatever lies on the edge may fall to either side."""
    for seed, name in enumerate(("old", "new")):
        first_weights(tmp_path / f"{name}.pt", 8, seed=seed, sureness=10)
    for device in ("cpu", "cuda"):
        assert label(command, shapes_root, tmp_path, "old.pt", tmp_path / device / "old", f"--device={device}")[0] == 0
        assert label(command, shapes_root, tmp_path, "new.pt", tmp_path / device / "new", "--oldfilename=old.pt",
                     "--beta=0.02", f"--previous-statistics={statistics}", f"--device={device}")[0] == 0
    files = sorted((tmp_path / "cpu" / "new" / "labels").glob("*.png"))
    pairs = [[np.array(Image.open(tmp_path / device / "new" / "labels" / file.name)) for device in ("cpu", "cuda")]
             for file in files]
    different = sum((first != second).sum() for first, second in pairs)
    assert len(files) == 16 and different <= 0.01 * sum(first.size for first, _ in pairs)


@pytest.mark.gpu
def test_a_labelling_on_a_gpu_that_goes_on_gives_the_same_bytes(shapes_root, tmp_path, command):
    """What an earlier start has stored is counted image by image, the rest in batches."""
    first_weights(tmp_path / "new.pt", 8, seed=1, sureness=10)
    folder = tmp_path / "labels"

    def digests():
        files = [path for path in folder.rglob("*") if path.suffix in (".png", ".npz") or path.name == "manifest.json"]
        return {path: path.read_bytes() for path in files}

    assert label(command, shapes_root, tmp_path, "new.pt", folder, "--device=cuda", "--batch-size-labeling=4")[0] == 0
    expected = digests()
    (folder / "manifest.json").unlink()
    for path in sorted(folder.glob("logits/*.npz"))[:6]:
        path.unlink()
    assert label(command, shapes_root, tmp_path, "new.pt", folder, "--device=cuda", "--batch-size-labeling=4")[0] == 0
    assert digests() == expected and len(expected) == 3 * 16 + 1


def validated(device):
    """The confusion matrix of made-up logits of 5 images that do not fill the test size, one of them in no full batch."""
    generator, rng, batches = torch.Generator().manual_seed(0), np.random.default_rng(0), []
    dataset = WholeImages(dataclasses.replace(load_spec("shapes"), test_size=(65, 65)))
    for count in (4, 1):
        sizes = [tuple(rng.integers(20, 66, 2).tolist()) for _ in range(count)]
        batches.append(dataset.collate([(np.zeros((*size, 3), np.uint8), rng.integers(0, 5, size).astype(np.uint8), number)
                                        for number, size in enumerate(sizes)]))
    maps = {len(batch[0]): 4 * torch.randn(len(batch[0]), 5, 9, 9, generator=generator) for batch in batches}
    seen = []

    class MadeUp:
        def refresh(self):
            """It learns nothing."""

        def __call__(self, images):
            return maps[len(images)].to(device)

    machine = Machine(torch.device(device), Precision("fp32", device), 0, 4)
    matrix = evaluate(deeplab_v2(5, "small"), MadeUp(), batches, machine,
                      see=lambda index, image, label, classes: seen.append((label.cpu(), classes.cpu().long())))
    return matrix.matrix, seen, [size for *_, sizes in batches for size in sizes]


def test_what_is_seen_in_validation_is_what_is_counted():
    matrix, seen, sizes = validated("cpu")
    assert [tuple(label.shape) for label, _ in seen] == [tuple(classes.shape) for _, classes in seen] == sizes
    own = ConfusionMatrix(5)
    for label, classes in seen:
        own.update(label, classes)
    assert (own.matrix == matrix).all() and matrix.sum() == sum(height * width for height, width in sizes)


@pytest.mark.gpu
def test_a_gpu_validates_as_a_cpu_does():
    (matrix, seen, sizes), (other, others, _) = validated("cpu"), validated("cuda")
    assert other.sum() == matrix.sum() and np.abs(matrix - other).sum() <= 0.001 * matrix.sum()
    assert all(torch.equal(label, same) for (label, _), (same, _) in zip(seen, others))
    assert [tuple(classes.shape) for _, classes in others] == sizes


@pytest.mark.gpu
def test_counts_of_a_gpu_are_those_of_a_cpu():
    rng = np.random.default_rng(5)
    labels, p = torch.from_numpy(rng.integers(0, 5, (37, 53))), torch.from_numpy(rng.uniform(0.2, 1, (37, 53)))
    here, there = ConfidenceHistogram(5), ConfidenceHistogram(5, "cuda")
    matrices = ConfusionMatrix(5), ConfusionMatrix(5, device="cuda")
    for _ in range(2):
        here.update(labels, p)
        there.update(labels.cuda(), p.cuda())
        assert torch.equal(here.counts, there.counts.cpu())
        for matrix, device in zip(matrices, ("cpu", "cuda")):
            matrix.update(labels.to(device), labels.flip(0).to(device))
        assert (matrices[0].matrix == matrices[1].matrix).all()
    assert (here.thresholds(0.5) == there.thresholds(0.5)).all()

"""What tests/test_distributed.py starts with torchrun: several stages by the same processes, for starting takes long.

    together.py FILE.json     a list of command lines of main.py, of ["confusion", path of its result, option ...], and of
                              ["batch_norm", path of its result]

Training takes GPUs in main.py; here batches are normalized over CPU processes, too.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import label, train  # noqa: E402
from jobs.job import Job  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from data.datasets import WholeImages  # noqa: E402
from dmt.evaluation import evaluate  # noqa: E402
from dmt.prediction import Forward  # noqa: E402
from tests.cpu_batch_norm import converted, over_gloo  # noqa: E402
from utils.distributed import Processes  # noqa: E402
from utils.options import parse_options  # noqa: E402


def stage(processes, *line):
    """Label or train."""
    job = Job([parse_options(line)], processes)
    if job.options.labeling:
        label.run(job)
    else:
        train.train(job)


def confusion(processes, path, *line):
    """Writes the confusion matrix of the stage's checkpoint on the validation set."""
    job = Job([parse_options(line)], processes)
    model = job.network.build(job.machine.device, Path(job.options.continue_from))
    forward = Forward(model, job.network.input_format, job.machine)
    images = job.machine.loader(WholeImages(job.data.spec), job.machine.whole_batches(job.data.validation()))
    matrix = evaluate(model, forward, images, job.machine).matrix
    if processes.is_first:
        Path(path).write_text(json.dumps(matrix.tolist()))


def batch_norm(processes, path):
    """Writes how far synchronized batch normalization is from torch's on the whole batch, and where."""
    worst = {}
    for sizes in ([3, 4, 1], [0, 2, 0], [5, 0, 3]):
        sizes = sizes[: processes.size]
        torch.manual_seed(1)
        whole = torch.nn.Sequential(torch.nn.BatchNorm2d(6))
        torch.nn.init.uniform_(whole[0].weight)
        torch.nn.init.uniform_(whole[0].bias)
        part = torch.nn.Sequential(torch.nn.BatchNorm2d(6))
        part.load_state_dict(whole.state_dict())
        part = converted(part)
        x = torch.randn(sum(sizes), 6, 5, 7) * 3 + 50  # far from zero: sums of squares would cancel
        gradient = torch.randn_like(x)
        own = slice(sum(sizes[: processes.rank]), sum(sizes[: processes.rank + 1]))
        inputs = x.clone().requires_grad_(), x[own].clone().requires_grad_()
        outputs = whole(inputs[0]), part(inputs[1])
        outputs[0].backward(gradient)
        outputs[1].backward(gradient[own])
        for parameter in part.parameters():
            dist.all_reduce(parameter.grad)
        pairs = {"output": (outputs[0][own], outputs[1]), "input's gradient": (inputs[0].grad[own], inputs[1].grad),
                 "weight's gradient": (whole[0].weight.grad, part[0].weight.grad),
                 "bias's gradient": (whole[0].bias.grad, part[0].bias.grad)}
        pairs.update({name: (whole.state_dict()[name], value) for name, value in part.state_dict().items()})
        for name, (expected, found) in pairs.items():
            distance = (expected - found).abs().amax() / expected.abs().amax() if found.numel() else torch.zeros(())
            worst[f"{name} of {sizes}"] = max(distance.item(), worst.get(name, 0))
    worst = processes.gather(worst)
    if processes.is_first:
        Path(path).write_text(json.dumps(worst))


if __name__ == "__main__":
    over_gloo()
    with Processes() as processes:
        for line in json.loads(Path(sys.argv[1]).read_text()):
            function = {"confusion": confusion, "batch_norm": batch_norm}.get(line[0])
            function(processes, *line[1:]) if function else stage(processes, *line)

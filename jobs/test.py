"""Test one checkpoint, or both arms and their ensemble: a table, and the same as JSON."""

from pathlib import Path

from predict import load, test
from utils.errors import UserError
from utils.files import make_folder


def run(job):
    """Test as the options of the ``jobs.job.Job`` say."""
    options, spec, machine = job.options, job.spec, job.machine
    files, coco = [job.checkpoint("continue_from")], [bool(options.coco)]
    if options.second_arm:
        files.append(job.checkpoint("second_arm"))
        coco.append(options.second_coco)
    name = "+".join(path.stem for path in files)
    result = Path(options.json or Path(options.output_dir) / f"{name}-test.json").expanduser()
    if result.is_dir():
        raise UserError(f"--json {result} is a folder; give the name of a file")
    network = load(*files, dataset=spec, coco=coco, aspp_branches=options.aspp_branches or 2, device=machine.device,
                   precision=machine.precision, protocol=options.protocol, test_size=options.test_size,
                   test_by=spec.test_by, window=options.window, stride=options.stride, scales=options.scales,
                   flip=options.flip)
    for member in network.members if options.protocol == "papers" else ():  # others' batches have own sizes
        job.parts(0, member.description)
    machine.processes.first(make_folder, result.parent, "--json")
    samples = job.data.validation(options.valtiny)
    print(test.headline(network), flush=True)
    matrices = test.test(job.data, samples, network, machine)
    print(test.table(spec.class_names, matrices))
    machine.processes.first(test.write_results, result, job.data, samples, network, matrices)
    print(f"written to {result}")

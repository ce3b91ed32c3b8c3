#!/usr/bin/env python3
"""A trained network as a file for use elsewhere: ONNX, torch.export, or safetensors.

    python -m tools.export runs/demo/demo__p2--l.pt
    python -m tools.export runs/demo/demo__p2--l.pt runs/demo/demo__p2--r.pt --upsample
    python -m tools.export runs/demo/demo__p2--l.pt --to safetensors --out weeds.safetensors

Writes one file for each checkpoint, beside it unless --out says where. ONNX and torch.export files hold the whole
network, for any number of images of any height and width from 9 pixels on. They take normalized images and give logits.
Their metadata says how to prepare images, how to decide from logits, and what the classes and their colours are.
Before a file gets its name it is run on random images of several sizes and compared with the network: the largest
difference must be at most 1e-4 of the largest logit. Safetensors files hold the weights, and what the checkpoint says
of itself, in a form that never runs code; main.py and the tools take them wherever they take a checkpoint.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}


@reports_user_errors
def main(arguments=None):
    """Export the checkpoints that the command line names."""
    options = _parser().parse_args(arguments)
    kinds = {suffix: kind for kind, suffix in SUFFIXES.items()}
    kind = options.to or kinds.get(Path(options.out or "").suffix.lower(), "onnx")
    if options.out and len(options.checkpoint) > 1:
        raise UserError("--out names one file, but several checkpoints were given; leave it out, each file then goes "
                        "beside its checkpoint")
    if options.upsample and kind == "safetensors":
        raise UserError("--upsample: a safetensors file holds weights, nothing that computes; leave it out, or choose "
                        "--to onnx or --to torch-export")
    jobs = [(Path(path).expanduser(), _target(path, options.out, kind, options.force)) for path in options.checkpoint]
    from predict.export import export  # loads torch, for which --help and wrong options need not wait
    for path, target in jobs:
        export(path, target, kind, options.upsample, options.dataset, options.coco or None, options.aspp_branches)


def _target(path, out, kind, force):
    """Where the export of ``path`` goes, looked at before anything is computed."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"the checkpoint {path} is missing; correct the path")
    if path.suffix.lower() in (SUFFIXES["onnx"], SUFFIXES["torch-export"]):
        raise UserError(f"{path} is an exported network already; give the checkpoint that it was made from")
    target = Path(out).expanduser() if out else path.with_suffix(SUFFIXES[kind])
    if target.suffix.lower() != SUFFIXES[kind]:
        raise UserError(f"--out {out}: a file for --to {kind} must end in {SUFFIXES[kind]}, by which it is known again")
    if target.exists() and not force:
        raise UserError(f"{target} exists already; add --force to replace it, or give another name with --out")
    return target


def _parser():
    parser = OneLineParser(prog="python -m tools.export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("checkpoint", nargs="+", metavar="CHECKPOINT", help="of a training stage (NAME.pt, or a .safetensors file)")
    add("--to", choices=tuple(SUFFIXES), help="what to write (default: by the suffix of --out, else onnx)")
    add("--out", metavar="FILE", help=f"where to (default: beside the checkpoint, with the suffix "
        f"{', '.join(SUFFIXES.values())})")
    add("--force", action="store_true", help="replace a file that is there already")
    add("--upsample", action="store_true", help="upsample the logits to the size of the images in the file itself "
        "(default: logits come at 1/8 of the size, and whoever runs the file upsamples them)")
    add = parser.add_argument_group("for checkpoints of older versions, which do not say it themselves").add_argument
    add("--dataset", metavar="{voc,city,YAML}",
        help="dataset that names the classes and their colours; a checkpoint of others is refused")
    add("--coco", action="store_true", help="trained with --coco: input is BGR in 0..255")
    add("--aspp-branches", type=int, choices=(2, 4), help="trained with so many branches (2)")
    return parser


if __name__ == "__main__":
    main()

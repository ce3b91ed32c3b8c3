"""The options of main.py. Nothing here imports torch, so that ``--help`` and a typing error answer at once."""

import argparse
import os
import sys

from utils.errors import OneLineParser, number

_EPILOG = """\
examples:
  supervised training of arm c on the 1/20 split:
    python main.py --state=2 --dataset=voc --train-set=20 --sets-id=1 --coco --continue-from=voc_coco_resnet101.pt \\
        --epochs=134 --batch-size-labeled=8 --lr=0.002 --seed=1 --val-num-steps=220 --mixed-precision --exp-name=my__p0--c
  arm i labels the unlabelled images, then arm c is trained on them and on the labelled ones:
    python main.py --labeling --dataset=voc --train-set=20 --sets-id=1 --continue-from=my__p0--i.pt --label-ratio=0.2
    python main.py --dataset=voc --train-set=20 --sets-id=1 --coco --continue-from=my__p0--c.pt --epochs=4 --lr=0.001 \\
        --gamma1=5 --gamma2=5 --seed=1 --mixed-precision --exp-name=my__p1--c
  test both arms and their ensemble, as the papers do, then with windows, flips and scales:
    python main.py --state=3 --dataset=voc --continue-from=my__p5--c.pt --second-arm=my__p5--i.pt
    python main.py --state=3 --dataset=voc --continue-from=my__p5--c.pt --protocol sliding --flip --scales 0.75 1 1.25
The launchers (dmt_ple-*.sh) do all of it, and print every command with DRY_RUN=1.
"""


_count = number(int, 1, "a positive whole number", high=10**9)
_count_or_zero = number(int, 0, "a whole number of at least 0", high=10**9)
_positive = number(float, 0, "a number above 0", strict=True)
_probability = number(float, 0, "a number from 0 to 1", high=1)
_not_negative = number(float, 0, "a number of at least 0")
_increment = number(float, -1, "a number from -1 to 1", high=1)
_share = number(float, 0, "a number above 0 and up to 1", strict=True, high=1)
_scale = number(float, 1 / 64, "a number from 1/64 to 64", high=64)

# Of options that are looked at for whether they were given:
_DEFAULTS = {"gamma1": 0.0, "gamma2": 0.0, "increment": 0.15, "previous_statistics": "running"}


def _scales(text):
    if not text.strip(","):
        raise argparse.ArgumentTypeError("give numbers, as in 0.75,1,1.25")
    return [_scale(part) for part in text.split(",") if part]


class _Several(argparse.Action):
    """Collects the lists that the words of an option stand for: 0.75 1,1.25 becomes one list of three."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [value for part in values for value in part])


def _name(text):
    if not text or "/" in text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r}: give a plain name without slashes that does not start with a dot")
    return text


def _backbone(text):
    if text not in ("resnet101", "resnet50", "small") and not text.startswith("timm/"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of resnet101, resnet50, small and timm/NAME")
    return text


def _background(text):
    return text if text in ("spec", "none") else _count_or_zero(text)


def parse_options(arguments=None):
    """Parse main.py's command line into an ``argparse.Namespace``; a wrong one ends in one line and exit status 2."""
    parser = OneLineParser(prog="main.py", epilog=_EPILOG,
                     description="Semi-supervised semantic segmentation with Dynamic Mutual Training (DMT) and Pseudo "
                                 "Label Enhancement (PLE): one stage of it, or a test.", allow_abbrev=False)
    for add in (_stage, _data, _network, _training, _labeling, _test, _machine):
        add(parser)
    options = parser.parse_args(arguments)
    if options.new_head and (not options.continue_from or options.labeling or options.state == 3 or options.weights):
        parser.error("--new-head trains the encoder of --continue-from with another head: give --continue-from FILE, "
                     "and neither --labeling, --state=3 nor --weights")
    if options.accumulate is not None and options.max_memory is not None:
        parser.error("--accumulate and --max-memory exclude each other: give N yourself, or have it picked")
    if (options.on_student_win != "stop" and options.online is None
            and options.gamma1 is None and options.gamma2 is None):
        parser.error(f"--on-student-win {options.on_student_win} changes nothing without weights; give the exponents, "
                     "--gamma1=5 --gamma2=5 in the papers")
    trains = not options.labeling and options.state != 3
    if trains and options.state == 2 and not options.batch_size_labeled:
        parser.error("--batch-size-labeled 0: supervised training needs labelled images; give at least 1")
    if trains and options.state == 1 and not options.batch_size_pseudo:
        parser.error("--batch-size-pseudo 0: semi-supervised training needs pseudo-labelled images; give at least 1, "
                     "or --state=2 for supervised training")
    if trains and options.online is not None and (options.state == 2 or options.gamma1 or options.gamma2
                                                  or options.on_student_win != "stop"):
        parser.error("--online: the model learns from its own labels, all of which count fully; leave out --state=2, "
                     "--gamma1, --gamma2 and --on-student-win")
    for option, given in (("--Increment", options.increment), ("--previous-statistics", options.previous_statistics),
                          ("--no-conflict-reduction", options.no_conflict_reduction or None)):
        if given is not None and options.oldfilename is None:
            print(f"notice: {option} does nothing without --oldfilename, the arm's checkpoint of the round before",
                  file=sys.stderr)
    options.pseudo_dir = options.pseudo_dir or os.path.join(options.output_dir, "pseudo_labels")
    for name, default in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def _stage(parser):
    add = parser.add_argument_group("what to do").add_argument
    add("--state", type=int, choices=(1, 2, 3), default=1,
        help="1 semi-supervised training on pseudo labels and labelled images (default), 2 fully supervised training, "
             "3 test the checkpoint --continue-from on the validation set: IoU of every class as a table and as JSON")
    add("--labeling", action="store_true",
        help="only label the unlabelled images with the checkpoint --continue-from, then stop")
    add("--check", action="store_true",
        help="only check, before a long run: every listed image and mask, the lists, the weights, disk and GPU "
             "memory; all findings at once, exit status 2 if any is an error")
    add("--check-weights", action="store_true",
        help="with --check and --continue-from: also the weights of an arm that starts without a checkpoint")
    add("--plan", action="store_true",
        help="read a launcher's commands from standard input and say what they come to, before the first is run: "
             "wrong numbers, finished stages with other numbers; with --check everything they need")
    add("--exp-name", metavar="NAME", type=_name,
        help="name of the stage: the checkpoint becomes NAME.pt (default: dataset, split and id)")
    add("--output-dir", metavar="DIR", default="runs", help="folder for everything written (runs)")
    add("--continue-from", metavar="FILE",
        help="checkpoint (.pt or .safetensors) to start from, to label with, or to test; a relative path is looked up "
             "here, then in --output-dir")
    add("--new-head", action="store_true",
        help="of the checkpoint --continue-from keep the encoder alone and draw the head anew, as for a dataset of "
             "other classes")
    add("--redo", action="store_true", help="do the stage anew even if it is finished")
    add("--on-collapse", choices=("stop", "warn"), default="stop",
        help="when the loss is not finite, a labelling model predicts one class only, or the mIoU fell far")
    add("--do-not-save", action="store_true", help="train without writing checkpoints")


def _data(parser):
    add = parser.add_argument_group("data").add_argument
    add("--dataset", metavar="{voc,city,YAML}", default="voc",
        help="voc (default), city, another built-in spec, or the path of a YAML spec (data/specs/)")
    add("--data-root", metavar="DIR",
        help="the dataset's folder (default: VOC_ROOT or CITYSCAPES_ROOT from the environment)")
    add("--lists-dir", metavar="DIR", help="folder of the split lists (default: inside the dataset)")
    add("--train-set", metavar="D", default="1",
        help="split, such as 20 for 1/20 of the labels, 106-l for a half made by dms_sample.py, 1 for all labels "
             "(default)")
    add("--sets-id", metavar="S", default="0", help="which of the random splits: 0 (default), 1 or 2")
    add("--allow-links", action="store_true", help=argparse.SUPPRESS)  # all are followed
    add("--max-pixels", metavar="N", type=_count, default=100_000_000,
        help="refuse images with more pixels than this (100000000)")
    add("--valtiny", action="store_true", help="validate on the short list valtiny.txt")
    add("--crop-size", metavar=("H", "W"), nargs=2, type=_count, help="training crop (dataset's own)")
    add("--test-size", metavar=("H", "W"), nargs=2, type=_count,
        help="size for validation and labelling (dataset's own)")
    add("--no-aug", action="store_true",
        help="only resize pseudo-labelled images to the crop instead of augmenting them")


def add_protocol_options(parser, default):
    """How images are shown to a network, for ``main.py --state=3`` and ``tools.predict``."""
    add = parser.add_argument_group("protocol (how images are shown to the network)").add_argument
    add("--protocol", choices=("papers", "original", "sliding"), default=default,
        help="papers: at test size, as validation in training does it (padded with black, or resized, as the dataset's "
             "spec says); original: each image undivided, at its own resolution; sliding: windows that move over it, "
             f"for large images and little memory ({default})")
    add("--window", metavar=("H", "W"), nargs=2, type=_count,
        help="sliding: size of the windows, rounded up to a multiple of 8, plus 1 (the training crop, where it is "
             "known, else the test size)")
    add("--stride", metavar="X", type=_share, default=2 / 3,
        help="sliding: share of a window by which it moves, at most (0.667); where windows overlap, their "
             "probabilities are averaged")
    add("--scales", metavar="X", nargs="+", type=_scales, action=_Several, default=[1.0],
        help="average the probabilities over these scales of the image, as in --scales 0.75 1 1.25 or --scales "
             "0.75,1,1.25 (1)")
    add("--flip", action="store_true", help="average the probabilities with those of the mirror image")


def _network(parser):
    add = parser.add_argument_group("network").add_argument
    add("--coco", action="store_true", default=None,
        help="the weights take the input format of the COCO (Caffe) model, BGR in 0..255, instead of ImageNet's; "
             "checkpoints that say their network (all but old ones) need no such option")
    add("--backbone", type=_backbone, metavar="NAME",
        help="resnet101 (the papers'), resnet50, small for CPUs, or timm/NAME: any encoder of timm that gives a "
             "feature map (default: the checkpoint's, else resnet101)")
    add("--output-stride", type=int, choices=(8, 16),
        help="of a timm encoder: pixels from one point of its map to the next (default: 8, or its own where it has "
             "only one, as transformers have)")
    add("--aspp-branches", type=int, choices=(2, 4),
        help="active branches of the head: 2 as released, 4 as in the DeepLab-v2 paper (default: the checkpoint's, "
             "else 2)")
    add("--weights", metavar="FILE|none",
        help="backbone weights when there is no --continue-from: a file of torchvision's or (.safetensors, too) of "
             "timm's, or none for random ones (default: theirs, downloaded)")


def _training(parser):
    add = parser.add_argument_group("training").add_argument
    add("--epochs", metavar="N", type=_count, default=30,
        help="passes over the pseudo-labelled images, or the labelled ones if supervised (30)")
    add("--batch-size-labeled", metavar="N", type=_count_or_zero, default=1, help="labelled images a step (1)")
    add("--batch-size-pseudo", metavar="N", type=_count_or_zero, default=7, help="pseudo-labelled images a step (7)")
    add("--accumulate", metavar="N", type=_count,
        help="compute each batch in N parts and add up their gradients, for a GPU too small for the whole (1): the "
             "same recipe, but batch normalization sees the N-th part of a batch at a time, with --accumulate 8 and a "
             "batch of 8 single images (docs/performance.md)")
    add("--max-memory", metavar="GB", type=_positive,
        help="print an estimate of the GPU memory and pick the smallest N of --accumulate that stays within GB (10^9 "
             "bytes), as in --max-memory 6; labelling and validation, whose batches --batch-size-labeling sets, have "
             "to fit as well")
    add("--lr", metavar="X", type=_positive, default=0.002, help="initial learning rate (0.002)")
    add("--weight-decay", metavar="X", type=_not_negative, default=0.0005, help="(0.0005)")
    add("--gamma1", metavar="X", type=_not_negative,
        help="exponent of the dynamic weight where teacher and student agree (0: no weighting)")
    add("--gamma2", metavar="X", type=_not_negative, help="exponent where they disagree and the teacher is surer (0)")
    add("--on-student-win", choices=("stop", "naive", "flip"), default="stop",
        help="where they disagree and the student is surer: stop, the pixel teaches nothing (default, DMT's rule); "
             "naive, it learns the label all the same, with the weight of gamma2; flip, it learns the student's own "
             "decision with weight (1 - teacher's confidence)^gamma2")
    add("--online", metavar="P", nargs="?", type=_probability, const=0.9,
        help="learn the unlabelled images from labels made on the fly instead of --pseudo-dir: the model's own "
             "decisions where its confidence is above P (0.9), with weight 1")
    add("--seed", metavar="N", type=_count_or_zero, default=1, help="seed of every random draw (1)")
    add("--val-num-steps", metavar="N", type=_count, default=500, help="steps between validations (500)")
    add("--log-num-steps", metavar="N", type=_count, default=50, help="steps between log entries (50)")
    add("--save-num-steps", metavar="N", type=_count, default=500,
        help="steps between saves of the training state, from which a killed stage goes on (500)")


def _labeling(parser):
    add = parser.add_argument_group("pseudo labels").add_argument
    add("--pseudo-dir", metavar="DIR",
        help="folder of the pseudo labels: --labeling writes it, training reads it (default: pseudo_labels in "
             "--output-dir)")
    add("--label-ratio", metavar="R", type=_share, default=0.2, help="share of each class's pixels to label (0.2)")
    add("--oldfilename", metavar="FILE",
        help="the arm's checkpoint of the round before: turns pseudo label enhancement (PLE) on")
    add("--Increment", "--beta", dest="increment", metavar="BETA", type=_increment,
        help="PLE takes the previous prediction where it is surer by this much (0.15)")
    add("--previous-statistics", choices=("running", "batch"),
        help="how PLE's previous network normalizes: running, in eval mode (default); batch, by each batch of "
             "--batch-size-labeling images, as the released code does by mistake, so that the published PLE numbers "
             "were obtained so; it costs a forward pass of its own")
    add("--background", metavar="{spec,none,N}", type=_background, default="spec",
        help="PLE's background class: the dataset's (default), none, or a class number")
    add("--no-conflict-reduction", action="store_true",
        help="PLE without its rules for background against foreground (for the ablation)")
    add("--batch-size-labeling", metavar="N", type=_count, default=8,
        help="images a forward pass in labelling and validation (8)")


def _test(parser):
    add = parser.add_argument_group("test (--state=3)").add_argument
    add("--second-arm", metavar="FILE",
        help="checkpoint of the other arm: it is tested too, and the ensemble of both; each gets the input format "
             "that it was trained with")
    add("--second-coco", action="store_true",
        help="like --coco, for an old checkpoint --second-arm that does not say its input format")
    add("--json", metavar="FILE", help="where the results go (default: NAME-test.json in --output-dir)")
    add_protocol_options(parser, "papers")


def _machine(parser):
    add = parser.add_argument_group("machine").add_argument
    add("--mixed-precision", action="store_true",
        help="16-bit network with float32 weights and loss (fp16: needs a GPU)")
    add("--amp-backend", choices=("torch", "apex"), default="torch",
        help="torch (default) or apex, where NVIDIA's old apex.amp is installed")
    add("--amp-dtype", choices=("fp16", "bf16"), default="fp16",
        help="16-bit format of --mixed-precision: fp16 with dynamic loss scaling (default, as in the papers), or "
             "bf16, which runs on a CPU too")
    add("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add("--cuda-graphs", action=argparse.BooleanOptionalAction, default=None,
        help="on a GPU: record the work of a full batch once and replay it, so that the GPU does not wait for the "
             "processor (default, but not with --max-memory, for what is recorded keeps its memory; never in a "
             "training by several processes, nor with Apex)")
    add("--compile", action="store_true",
        help="torch.compile of the residual blocks: faster steps after a slow start; results differ by rounding (not "
             "for a training by several processes)")
    add("--workers", metavar="N", type=_count_or_zero,
        help="loader processes (default: 0 on a CPU, else one for each processor up to 8, and 12 where there are 16); "
             "results do not depend on it")

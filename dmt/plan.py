"""The plan of a launcher, looked at before its first stage: every command parsed, counted, and compared with what is
there. Nothing here needs torch.
"""

import dataclasses
from pathlib import Path

from data import lists
from data.specs import load_spec, resolve_root
from utils.errors import UserError
from utils.files import read_json, sha256

SEPARATOR = "\x1f"
"""Between the words of a command; there is one command a line."""
_OF_THE_CHAIN = ("--exp-name", "--output-dir", "--continue-from", "--oldfilename", "--pseudo-dir")


class Plan:
    """What a launcher is going to do, from its commands: ``lines`` of words between ``SEPARATOR``.

    ``parse(words)`` gives main.py's options, or exits. ``stages`` are those of all trainings and labellings, each once;
    ``finished`` counts those that are there already, and ``changed`` maps the folders of the ones among them that will
    be done again to the number that has changed, or to None where another stage has.
    """

    def __init__(self, lines, parse):
        self.stages, self.finished, self.changed = [], 0, {}
        seen = set()
        for line in lines:
            program, words = split_command(line)
            if not program:
                continue
            given = [word.partition("=")[0] for word in words]
            for option in _OF_THE_CHAIN:
                if given.count(option) > 1:
                    raise UserError(f"{option} stands twice in {' '.join(words)}: EXTRA cannot say what a stage reads "
                                    "and writes; set OUTPUT_DIR or exp")
            options = parse(words)
            if options.labeling:
                load_spec(options.dataset).background_class(options.background)  # an error now, not after round 0
            product = _product(options)
            if product is not None and product not in seen:
                seen.add(product)
                self.stages.append(options)
                self._compare(options, product)

    def __str__(self):
        trainings = [stage for stage in self.stages if not stage.labeling]
        steps = [_steps(stage) for stage in trainings]
        total = "" if None in steps else f" of {sum(steps)} steps in all"
        there = f"; {self.finished} of these stages are finished" if self.finished else ""
        return f"plan: {len(trainings)} trainings{total} and {len(self.stages) - len(trainings)} labellings{there}"

    def _compare(self, options, product):
        made = product / ("manifest.json" if options.labeling else "result.json")
        if not made.is_file():
            return
        self.finished += 1
        sources = [Path(word) for word in (options.continue_from, options.oldfilename,
                                           options.pseudo_dir if options.state == 1 else None) if word]
        reason = _difference(options, read_json(made))
        if reason or any(path in self.changed or path.with_suffix("") in self.changed for path in sources):
            self.changed[product] = reason


def read_plan(lines, parse, redo):
    """Print what the commands come to and return the options of their stages.

    Finished stages that would be done again, since their numbers have changed, are named; without ``redo`` that is an
    error.
    """
    plan = Plan(lines, parse)
    print(plan, flush=True)
    if plan.changed:
        own = [f"{product.name} ({reason})" for product, reason in plan.changed.items() if reason]
        again = "; ".join(own)
        if len(own) < len(plan.changed):
            again += f"; and {len(plan.changed) - len(own)} that follow from them"
        if not redo:
            raise UserError(f"these stages are finished, with other numbers: {again}; set REDO=1 to replace them, or "
                            "give another OUTPUT_DIR or exp")
        print(f"done again: {again}", flush=True)
    return plan.stages


def split_command(line):
    """The words of a line up to main.py, and those after it; ([], all words) of another command."""
    words = line.rstrip("\n").split(SEPARATOR)
    place = next((place for place, word in enumerate(words, 1) if Path(word).name == "main.py"), 0)
    return words[:place], words[place:]


def _product(options):
    """The folder in which a stage leaves its result; None for a test, which leaves none."""
    if options.labeling:
        return Path(options.pseudo_dir)
    if options.state == 3 or options.check:
        return None
    return Path(options.output_dir, options.exp_name or "-".join((options.dataset, options.train_set, options.sets_id)))


def _steps(options):
    """The number of steps of a training, or None when its lists are not there yet."""
    try:
        spec = load_spec(options.dataset)
        root = resolve_root(spec, options.data_root)
        if options.lists_dir:
            spec = dataclasses.replace(spec, lists=str(Path(options.lists_dir).expanduser().absolute()))
        names = lists.unlabeled_names if options.state == 1 else lists.labeled_names
        count = len(names(spec, root, options.train_set, options.sets_id))
    except UserError:
        return None
    batch_size = options.batch_size_pseudo if options.state == 1 else options.batch_size_labeled
    return options.epochs * -(-count // batch_size)


def _difference(options, made):
    """In words, the first number with which a finished stage was not made, or None."""
    try:
        numbers = _labelling_numbers if options.labeling else _training_numbers
        for name, before, now in numbers(options, load_spec(options.dataset), made):
            if before != now and name == "oldfilename" and None in (before, now):
                return "PLE (beta) was off, now it is on" if now else "PLE (beta) was on, now it is off"
            if before != now:
                return f"--{name.replace('_', '-')} was {before}, now it is {now}"
    except (KeyError, TypeError, AttributeError):  # damaged, or of another version: the stage will say so
        pass
    return None


def _labelling_numbers(options, spec, manifest):
    """Yield (option, its value in the manifest, its value now) of what a labelling depends on beside its files."""
    rules = manifest["rules"]
    yield "label_ratio", rules["ratio"], options.label_ratio
    yield "oldfilename", manifest["previous"], options.oldfilename and Path(options.oldfilename).name
    yield "increment", rules["beta"], options.increment
    yield "background", rules["background"], spec.background_class(options.background)
    yield "no_conflict_reduction", not rules["conflict_reduction"], options.no_conflict_reduction
    yield "previous_statistics", rules.get("previous_statistics", "running"), options.previous_statistics
    yield "batch_size_labeling", manifest["batch_size"], options.batch_size_labeling
    yield from _size("test_size", manifest["test_size"], options.test_size or spec.test_size)


def _training_numbers(options, spec, result):
    """As ``_labelling_numbers``, of a training, from its fingerprint in the ``result``."""
    made, file = result["fingerprint"], options.continue_from or options.weights
    now = {**vars(options), "batch_size_pseudo": options.batch_size_pseudo if options.state == 1 else None,
           "on_student_win": None if options.on_student_win == "stop" else options.on_student_win,
           "accumulate": None if options.accumulate == 1 else options.accumulate}
    for name, before in made["options"].items():
        yield name, before, before if name == "accumulate" and options.max_memory else now.get(name, before)
    for name in ("backbone", "output_stride", "aspp_branches"):
        if name in made["network"] and now[name] is not None:
            yield name, made["network"][name], now[name]
    yield from _size("crop_size", made["dataset"]["crop"], options.crop_size or spec.crop)
    yield from _size("test_size", made["dataset"]["test_size"], options.test_size or spec.test_size)
    if options.state == 2 and (not options.continue_from or Path(file).is_file()):
        digest = sha256(file)[:12] if file and Path(file).is_file() else file
        yield "continue_from" if options.continue_from else "weights", made["start"] and made["start"][:12], digest


def _size(name, before, now):
    if now is not None:  # else that of the largest image
        yield name, list(before), list(now)

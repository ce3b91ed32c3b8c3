"""How far the stages of a running chain are, and how long the rest will take."""

import statistics

from tools.run_folder import Labelling


def state_of(part, content):
    """(name, what it does, done, whole) of a stage or labelling that has begun and not finished; None for others."""
    if isinstance(part, Labelling):
        if part.manifest is not None:
            return None
        predicted, labelled = part.done()
        images = next((other.manifest["images"] for other in content.labellings if other.manifest), 0)
        what = f"labels the unlabelled images ({predicted} predicted, {labelled} labelled)"
        return (f"arm {part.arm}", _stopped(part, what), predicted + labelled, 2 * images)
    if part.result is not None:
        return None
    what = f"step {part.steps or 0} of {part.total_steps}" if part.total_steps else "has begun"
    left = _seconds_left(part)
    if part.running and left is not None:
        what += f", {duration(left)} left"
    if part.miou is not None:
        what += f", best mIoU so far {100 * part.miou:.2f} %"
    return part.name, _stopped(part, what), part.steps or 0, part.total_steps or 0


def chain_left(content):
    """(stages finished, stages planned, seconds left or None): trainings and labellings of the whole chain.

    The number of stages is 0 where the plan is not known. Seconds are counted as if one stage ran at a time.
    """
    trainings = [stage for stage in content.stages if stage.result]
    labellings = [labelling for labelling in content.labellings if labelling.manifest]
    done = len(trainings) + len(labellings)
    if content.planned is None or not content.arms:
        return done, 0, None
    arms = len(content.arms)
    of_rounds = arms * content.planned
    due = arms + 2 * of_rounds + len(content.others) + (1 if content.baseline else 0)
    seconds = [stage.seconds for stage in trainings if stage.round and stage.seconds]
    labelling_seconds = [labelling.timing["seconds"] for labelling in labellings if labelling.timing.get("seconds")]
    if not seconds or not labelling_seconds:
        return done, due, None
    left = (of_rounds - sum(1 for stage in trainings if stage.round)) * statistics.mean(seconds)
    left += (of_rounds - len(labellings)) * statistics.mean(labelling_seconds)
    return done, due, max(left, 0)


def duration(seconds):
    """Seconds in words: 43 s, 12 min, 3 h 20 min; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _seconds_left(stage):
    """Seconds until the training ends at the speed of its last start, or None."""
    start = next(iter(reversed(stage.lines("start"))), None)
    if start is None or not stage.total_steps:
        return None
    last = stage.metrics[-1]
    steps = last["step"] - start["step"]
    return (stage.total_steps - last["step"]) * (last["time"] - start["time"]) / steps if steps > 0 else None


def _stopped(part, what):
    return what if part.running else f"{what} (stopped)"

"""What lies in the folders of a dataset to be: images, masks, unlabelled images, and what they say of themselves."""

import collections
import os
import statistics

from data.masks import unpack
from tools import class_choice, class_table, pairing, survey
from utils.errors import UserError

_ROWS = 40  # of the table of classes


class Found:
    """The files of the folders, what they hold, and which are of use."""

    def __init__(self, root, options):
        self.root, self.warnings = root, []
        self._folders = options.images, options.masks
        self.together = options.images == options.masks
        pools = options.unlabeled
        if self.together:
            images, masks = pairing.apart(pairing.files_in(options.images, pools), options.mask_suffix)
        else:
            images = pairing.files_in(options.images, [options.masks, *pools])
            masks = pairing.files_in(options.masks, [options.images, *pools])
        for files, what in ((images, "images"), (masks, "masks")):
            if not files.stems:
                raise UserError(f"{files.folder} holds no {what} (JPEG, PNG, TIFF, WebP or BMP)"
                                + (f", but {files.others[0]}" if files.others else "") + "; give the right folder")
        self._other_files = len(images.others) + (0 if self.together else len(masks.others))
        self.pairing = pairing.pair(images, masks, options.mask_suffix)
        self._look(options.images, options.masks)
        self._look_at_pools(pools)

    def _look(self, images_folder, masks_folder):
        pairs = self.pairing.pairs
        self.image_facts = dict(zip(pairs, survey.examine(
            survey.image_facts, [images_folder / image for image, _ in pairs.values()], "image")))
        masked = [name for name, (_, mask) in pairs.items() if mask is not None]
        facts = survey.grey_as_values(list(survey.examine(
            survey.mask_facts, [masks_folder / pairs[name][1] for name in masked], "mask")))
        self.by_color = any(fact.kind == "RGB" for fact in facts)
        if self.by_color:
            facts = survey.by_color(facts)
        self.mask_facts = dict(zip(masked, facts))
        self._refuse_bad()
        self.labeled = [name for name in masked if self._usable(name)]
        self.without = [name for name in pairs if name not in self.mask_facts and not self.image_facts[name].error]
        if not self.labeled:
            first = next(iter(self.mask_facts.values()))
            raise UserError(f"no mask of {masks_folder} can be used; {first.error or self.warnings[0]}")

    def _refuse_bad(self):
        """Warn of files that cannot be used, and of what looks wrong."""
        for name, fact in self.image_facts.items():
            mask = self.mask_facts.get(name)
            for error in (fact.error, mask and mask.error):
                if error:
                    self.warnings.append(f"left out: {error}")
            if mask and not mask.error and not fact.error and mask.size != fact.size:
                self.warnings.append(f"left out: {name} has an image of {_by(fact.size)} and a mask of "
                                     f"{_by(mask.size)} pixels; they must be of one size")
        turned = [name for name, fact in self.image_facts.items() if fact.turned]
        if turned:
            self.warnings.append(f"{len(turned)} images have a camera's orientation tag ({turned[0]}); they are used "
                                 "as stored, without turning, and their masks must be stored so, too")
        dark = [name for name, fact in self.image_facts.items() if fact.dark]
        if dark:
            self.warnings.append(f"{len(dark)} images of 16 bits hold 12 bits at most ({dark[0]}); only the upper 8 "
                                 "bits count, so they are nearly black: scale them first")
        if self.pairing.lost:
            self.warnings.append(f"{len(self.pairing.lost)} masks belong to no image ({self.pairing.lost[0]})")
        palettes = collections.defaultdict(set)
        for fact in self.mask_facts.values():
            for value, color in fact.palette.items():
                palettes[value].add(color)
        mixed = [value for value, colors in palettes.items() if len(colors) > 1]
        if mixed:
            self.warnings.append(f"the palettes of masks differ (value {mixed[0]} has {len(palettes[mixed[0]])} "
                                 "colours); values count, so make sure that one value means one class everywhere")

    def _usable(self, name):
        mask, image = self.mask_facts[name], self.image_facts[name]
        return not mask.error and not image.error and mask.size == image.size

    def _look_at_pools(self, pools):
        """``self.pool`` maps names of unlabelled images in folders of their own to files; ``self.pools`` maps those
        folders to the folders that the names begin in."""
        self.pool, self.pools, self._pool_count = {}, {}, 0
        if not pools:
            return
        files = [(folder, path) for folder in pools
                 for paths in pairing.files_in(folder, {*self._folders} - {folder}).stems.values() for path in paths]
        if not files:
            raise UserError(f"{pools[0]} holds no images; correct --unlabeled")
        self._pool_count = len(files)
        names = [path.rpartition(".")[0] for _, path in files]
        # Where two of the folders have one name, all names begin with the folder.
        apart = len({*names, *self.without}) == len(names) + len(self.without)
        self.pools = {folder: folder if apart else self.root for folder in pools}
        taken = {_identity(self._folders[0] / self.pairing.pairs[name][0]) for name in self.pairing.pairs}
        facts = survey.examine(survey.image_facts, [folder / path for folder, path in files], "unlabelled image")
        for (folder, path), fact in zip(files, facts):
            file = folder / path
            if fact.error:
                self.warnings.append(f"left out: {fact.error}")
                continue
            if _identity(file) in taken:  # the folder given twice, or IMAGES itself
                continue
            taken.add(_identity(file))
            name = os.path.relpath(file, self.pools[folder]).rpartition(".")[0]
            if name in self.pool:
                raise UserError(f"{self.pool[name]} and {file} have one name; remove or rename one of them")
            self.pool[name] = file
            self.image_facts[f"unlabeled:{name}"] = fact

    @property
    def sizes(self):
        """Sizes of all images of use."""
        return [fact.size for fact in self.image_facts.values() if fact.size]

    def print_files(self):
        """The first part of the summary."""
        pairs = self.pairing.pairs
        images, masks = self._folders
        others = f", {_others(self._other_files)}" if self._other_files else ""
        row("images", f"{len(pairs)} in {shown_path(images)}{others}")
        frame = self.pairing.masks
        called = f", called {frame.head}NAME{frame.tail}" if any(frame) else ""
        row("masks", f"{len(self.mask_facts)} in {shown_path(masks)}{called}; {len(pairs) - len(self.mask_facts)} "
                     "images have none")
        if self.pairing.other_tails:
            row("", "not used: " + ", ".join(f"{count} called NAME{tail}"
                                              for tail, count in self.pairing.other_tails.items()))
        if self._pool_count:
            row("unlabelled", f"{self._pool_count} more in --unlabeled, {len(self.pool)} of use")
        heights, widths = zip(*self.sizes)
        for name, sides in (("widths", widths), ("heights", heights)):
            row(name, f"{min(sides)} to {max(sides)} pixels, median {statistics.median_low(sides)}")
        for name, facts in (("image files", self.image_facts), ("mask files", self.mask_facts)):
            kinds = collections.Counter(fact.kind for fact in facts.values() if not fact.error)
            row(name, ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
        bad = sum(bool(fact.error) for fact in self.image_facts.values())
        bad += sum(not self._usable(name) for name in self.mask_facts if not self.image_facts[name].error)
        if bad:
            row("left out", f"{bad} files, named at the end")

    # --- classes ------------------------------------------------------------------------------------------------------

    def contents(self, name):
        """Dict of the pixels of each value or colour in the mask of ``name``."""
        fact = self.mask_facts[name]
        return fact.colors if self.by_color else fact.values

    def choose_classes(self, options):
        """The ``tools.class_choice.Choice``, with the user's names, background and ignored values."""
        given = class_table.read_classes(options.classes) if options.classes else ()
        self.pixels, self.files = survey.total(self.contents(name) for name in self.labeled)
        if self.by_color:
            choice = class_choice.by_color(self.pixels, given, _ignored_colors(options.ignore))
        else:
            first = self._folders[1] / self.pairing.pairs[self.labeled[0]][1]
            palette = survey.palette_of(first)  # colours of classes that no mask has, too
            palette.update({value: color for fact in self.mask_facts.values() for value, color in fact.palette.items()})
            choice = class_choice.by_value(self.pixels, palette, given, _ignored_value(options.ignore))
        if options.background:
            choice.background = _background(options.background, [entry.name for entry in choice.classes])
        return choice

    def print_classes(self, choice):
        """The table of values or colours."""
        print()
        print(f"{'colour' if self.by_color else 'value':>15} {'masks':>7} {'% of pixels':>12}  class")
        total = sum(self.pixels.values())
        ranked = sorted(self.pixels, key=lambda value: (choice.class_of.get(value, 255), value))
        for value in ranked[:_ROWS]:
            index = choice.class_of.get(value, 255)
            what = "ignored" if index == 255 else f"{index} {choice.classes[index].name}"
            shown = ",".join(map(str, unpack(value))) if self.by_color else value
            print(f"{shown:>15} {self.files[value]:>7} {100 * self.pixels[value] / total:>12.2f}  {what}")
        if ranked[_ROWS:]:
            print(f"{'...':>15} and {len(ranked) - _ROWS} more")
        print()


def _ignored_value(texts):
    if not texts:
        return "guess"
    text = texts[0]
    if len(texts) > 1 or not (text.isdecimal() and int(text) <= 65535 or text == "none"):
        raise UserError(f"--ignore {' '.join(texts)}: the masks hold values, so give one from 0 to 65535, or none")
    return None if text == "none" else int(text)


def _ignored_colors(texts):
    colors = []
    for text in texts:
        parts = text.split(",")
        if text == "none" and len(texts) == 1:
            return []
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
            raise UserError(f"--ignore {text}: the masks are RGB, so give colours, as in 255,255,255, or none")
        colors.append(tuple(int(part) for part in parts))
    return colors


def _background(text, names):
    if text == "none":
        return None
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UserError(f"--background {text}: give the name of a class ({', '.join(names[:12])}), its number from 0 to "
                    f"{len(names) - 1}, or none")


def row(name, text):
    """Print a row of the summary."""
    print(f"{name:<12} {text}")


def _others(count):
    return f"{count} other file{'s' * (count != 1)} left aside"


def _by(size):
    return f"{size[1]} x {size[0]}"


def shown_path(path):
    """The path as short as it can be, from here."""
    return min(str(path), os.path.relpath(path), key=len)


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino

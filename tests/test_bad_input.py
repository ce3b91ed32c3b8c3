"""What a user can get wrong ends in one line that says what, where and how to mend it, and exit status 2."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_stages import SMALL, first_weights
from utils.options import parse_options

LISTS = "ImageSets/Segmentation"


@pytest.fixture
def refuse(command, own_shapes, tmp_path):
    """Run a command that must be refused; returns the line on standard error."""
    first_weights(tmp_path / "good.pt", 8)

    def run(*arguments, root=None, supervised=True):
        words = ["--dataset=shapes", f"--data-root={root or own_shapes}", "--train-set=8", f"--output-dir={tmp_path}",
                 "--exp-name=bad", "--epochs=1", "--test-size", 65, 65, *SMALL]
        if supervised:
            words += ["--state=2", "--batch-size-labeled=4"]
        status, _, errors = command(*words, *arguments)
        lines = errors.strip().splitlines()
        assert status == 2, errors
        assert len(lines) == 1 and lines[0].startswith("error: "), errors
        assert not (tmp_path / "bad.pt").exists()  # nothing half-written
        return lines[0]

    return run


def first_labeled(root):
    return (root / LISTS / "8_labeled_0.txt").read_text().split()[0]


def replace_list(root, text, name="8_labeled_0.txt"):
    (root / LISTS / name).write_text(text)


@pytest.mark.parametrize("main, wrong, right", [
    ("main", "--epocs=3", "--epochs"), ("main", "--Incremnt", "--Increment"), ("tools/predict", "--protcol", "--protocol")])
def test_a_misspelt_option_gets_the_nearest_name(script, main, wrong, right):
    needed = ["--checkpoint=a", "--out=b", "c"] if main == "tools/predict" else []
    done = script(f"{main}.py", *needed, wrong)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"did you mean {right}?" in done.stderr


def test_missing_root(refuse, tmp_path):
    assert str(tmp_path / "nowhere") in refuse(root=tmp_path / "nowhere")


def test_no_root_at_all(command, monkeypatch):
    monkeypatch.delenv("VOC_ROOT", raising=False)
    status, _, errors = command("--state=2")
    assert status == 2 and "VOC_ROOT" in errors and "--data-root" in errors


def test_missing_list(refuse, own_shapes):
    (own_shapes / LISTS / "8_labeled_0.txt").unlink()
    assert "8_labeled_0.txt" in (line := refuse()) and "generate_splits.py" in line


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a\\b"])
def test_names_that_leave_the_dataset(refuse, own_shapes, name):
    replace_list(own_shapes, f"{first_labeled(own_shapes)}\n{name}\n")
    assert "line 2" in refuse()


def test_empty_lists(refuse, own_shapes):
    replace_list(own_shapes, "\n")
    assert "is empty" in refuse()
    replace_list(own_shapes, "", "8_unlabeled_0.txt")
    assert "8_unlabeled_0.txt is empty" in refuse("--labeling", "--continue-from=good.pt")


@pytest.mark.parametrize("folder, suffix, what", [("JPEGImages", "jpg", "image"), ("SegmentationClassAug", "png", "mask")])
def test_missing_image_or_mask(refuse, own_shapes, folder, suffix, what):
    path = own_shapes / folder / f"{first_labeled(own_shapes)}.{suffix}"
    path.unlink()
    assert f"the {what} {path} is missing" in refuse()


def test_image_that_is_none(refuse, own_shapes):
    path = own_shapes / "JPEGImages" / f"{first_labeled(own_shapes)}.jpg"
    path.write_bytes(b"no image")
    assert str(path) in refuse()


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_is_cut_off(refuse, own_shapes, workers):
    path = own_shapes / "JPEGImages" / f"{first_labeled(own_shapes)}.jpg"
    path.write_bytes(path.read_bytes()[:-600])
    assert str(path) in (line := refuse("--workers", workers)) and "truncated" in line


@pytest.mark.parametrize("batch, more", [(7, []), (2, ["--accumulate=2"])])
def test_one_feature_for_batch_normalization(batch, more, shapes_root, tmp_path, command):
    """8 labelled images: the last batch of 7 has one; a part of 2 in 2 has one."""
    words = ["--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8", "--epochs=1", "--exp-name=one",
             f"--output-dir={tmp_path}", "--backbone=small", "--weights=none", "--workers=0", "--test-size", 65, 65]
    status, _, errors = command(*words, "--crop-size", 8, 8, f"--batch-size-labeled={batch}", *more)
    assert status == 2 and len(errors.splitlines()) == 1 and "batch normalization needs two" in errors
    assert command(*words, "--crop-size", 8, 9, f"--batch-size-labeled={batch}", *more)[0] == 0
    assert command(*words, "--crop-size", 8, 8, "--batch-size-labeled=4", "--redo")[0] == 0


def test_sizes_that_differ(refuse, own_shapes):
    path = own_shapes / "SegmentationClassAug" / f"{first_labeled(own_shapes)}.png"
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(path)
    assert "7 x 5" in refuse()


def test_mask_value_outside_the_classes(refuse, own_shapes):
    path = own_shapes / "SegmentationClassAug" / f"{first_labeled(own_shapes)}.png"
    values = np.array(Image.open(path))
    values[3, 4] = 99
    Image.fromarray(values).save(path)
    line = refuse()
    assert str(path) in line and "the value 99" in line


def test_colour_mask(refuse, own_shapes):
    path = own_shapes / "SegmentationClassAug" / f"{first_labeled(own_shapes)}.png"
    Image.open(path).convert("RGB").save(path)
    assert str(path) in refuse()


class Attack:
    def __reduce__(self):
        return print, ("this must never run",)


def test_checkpoints_that_are_none(refuse, tmp_path, capsys):
    torch.save({"model": Attack()}, tmp_path / "attack.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"model": Attack()}))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:20000])
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weights": {}}, tmp_path / "no_model.pt")
    first_weights(tmp_path / "nan.pt", 8, sureness=float("nan"))
    for name in ("attack", "text", "empty", "pickle", "cut", "list", "no_model", "nan"):
        assert f"{name}.pt" in refuse(f"--continue-from={name}.pt")
    assert "never run" not in capsys.readouterr().out


def test_checkpoint_of_other_classes_or_of_another_network(refuse, tmp_path):
    first_weights(tmp_path / "voc.pt", 21)
    assert "21 classes" in refuse("--continue-from=voc.pt")
    assert "--backbone" in refuse("--continue-from=good.pt", "--backbone=resnet50")


def test_checkpoint_that_is_missing(refuse, tmp_path):
    line = refuse("--continue-from=gone.pt")
    assert "gone.pt" in line and str(tmp_path) in line
    assert "--continue-from" in refuse("--labeling")
    assert "--continue-from" in refuse("--state=3", supervised=False)


def test_coco_input_needs_coco_weights(command, own_shapes, tmp_path):
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={own_shapes}", "--train-set=8", "--coco",
                                "--backbone=small", f"--output-dir={tmp_path}")
    assert status == 2 and "prepare_coco.sh" in errors and len(errors.splitlines()) == 1


def test_pseudo_labels_missing_or_of_another_split(refuse, own_shapes, tmp_path, command):
    mutual = ["--state=1", "--continue-from=good.pt", f"--pseudo-dir={tmp_path / 'pseudo' / 'a'}"]
    assert "--labeling" in refuse(*mutual, supervised=False)
    common = ["--dataset=shapes", f"--data-root={own_shapes}", f"--output-dir={tmp_path}", "--test-size", 65, 65, *SMALL]
    status, _, errors = command("--labeling", "--train-set=20", *mutual[1:], *common)
    assert status == 0, errors
    line = refuse(*mutual, supervised=False)
    assert "split 20" in line and "split 8" in line
    status, _, errors = command("--labeling", "--train-set=8", *mutual[1:], *common)
    assert status == 0, errors
    label = next((tmp_path / "pseudo" / "a" / "labels").glob("*.png"))
    name = (own_shapes / LISTS / "8_unlabeled_0.txt").read_text().split()[0]
    label = label.with_name(f"{name}.png")
    label.unlink()
    assert str(label) in refuse(*mutual, supervised=False)
    assert "--batch-size-pseudo" in refuse(*mutual, "--batch-size-pseudo=0", supervised=False)


@pytest.mark.parametrize("flag", [
    "--epochs=0", "--epochs=-1", "--batch-size-labeled=-1", "--batch-size-labeled=0", "--val-num-steps=0", "--lr=0",
    "--lr=nan", "--lr=inf", "--state=4", "--label-ratio=0", "--label-ratio=20", "--seed=x", "--amp-backend=mxnet",
    "--aspp-branches=3", "--Increment=nan", "--Increment=15", "--beta=-1.1", "--previous-statistics=none", "--gamma1=-1",
    "--unknown-flag", "--background=99", "--dataset=imagenet", "--train-set=../8", "--exp-name=a/b", "--crop-size=0"])
def test_values_that_make_no_sense(refuse, flag):
    more = ["--labeling", "--continue-from=good.pt"] if "background" in flag else []
    line = refuse(flag, *more)
    assert flag.split("=")[0] in line


@pytest.mark.parametrize("option", ["--Increment=0.15", "--previous-statistics=batch", "--no-conflict-reduction"])
def test_what_needs_the_previous_network_says_so(option, capsys):
    parse_options([option, "--labeling"])
    assert capsys.readouterr().err == (f"notice: {option.partition('=')[0]} does nothing without --oldfilename, "
                                       "the arm's checkpoint of the round before\n")
    options = parse_options([option, "--oldfilename=old.pt"])
    assert capsys.readouterr().err == "" and options.increment == 0.15
    assert (options.batch_size_labeled, options.batch_size_pseudo) == (1, 7)


def test_a_home_folder_that_the_shell_has_left_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/h\\ome")
    options = parse_options(["--output-dir=~/runs", "--data-root", "~", "--json=~name", "--weights=a~/b"])
    assert (options.output_dir, options.data_root, options.json, options.weights) == (
        "/h\\ome/runs", "/h\\ome", "~name", "a~/b")


def test_apex_where_it_is_not_installed(refuse):
    assert "apex.amp" in refuse("--mixed-precision", "--amp-backend=apex")


def test_loss_that_is_not_finite(refuse, tmp_path):
    line = refuse("--lr=1e30", "--epochs=12", "--val-num-steps=1")
    assert "not finite at step" in line
    assert (tmp_path / "bad" / "best-00000001.pt").is_file() and "best-00000001.pt" in line


def test_output_folder_that_cannot_be_written(refuse, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refuse(f"--output-dir={tmp_path / 'file' / 'runs'}")


def test_full_disk(own_shapes, tmp_path, script):
    """A file-size limit stands for a full disk: the checkpoint cannot be written, what was there stays."""
    words = ["main.py", "--state=2", "--dataset=shapes", f"--data-root={own_shapes}", "--train-set=8", "--epochs=2",
             f"--output-dir={tmp_path}", "--exp-name=full", "--batch-size-labeled=4", *SMALL, "--test-size", 65, 65]
    shutil.copy(__file__, tmp_path / "full.pt")
    before = (tmp_path / "full.pt").read_bytes()

    def limit():
        import resource
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = script(*words, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
    assert (tmp_path / "full.pt").read_bytes() == before
    assert not list(tmp_path.rglob(".*tmp*"))
    assert script(*words).returncode == 0


def test_check_names_every_finding_at_once(refuse, own_shapes, command, tmp_path):
    words = ["--check", "--dataset=shapes", f"--data-root={own_shapes}", "--train-set=8", f"--output-dir={tmp_path}",
             "--test-size", 65, 65, *SMALL]
    status, printed, errors = command(*words)
    assert status == 0 and "disc" in printed and "disk: at most" in printed, errors
    names = (own_shapes / LISTS / "8_labeled_0.txt").read_text().split()
    (own_shapes / "JPEGImages" / f"{names[0]}.jpg").write_bytes(b"")
    (own_shapes / "SegmentationClassAug" / f"{names[1]}.png").unlink()
    unlabelled = (own_shapes / LISTS / "8_unlabeled_0.txt").read_text()
    replace_list(own_shapes, unlabelled + names[2] + "\n", "8_unlabeled_0.txt")
    status, _, errors = command(*words, "--continue-from=gone.pt")
    lines = errors.splitlines()
    assert status == 2 and all(line.startswith(("error: ", "warning: ")) for line in lines)
    for name in (*names[:3], "gone.pt"):
        assert name in errors

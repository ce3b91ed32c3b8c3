"""From the two archives of VOC and SBD to a dataset for training, on small archives with the real structure."""

import functools
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from data.lists import read_list
from data.specs import load_spec
from data.splits import make_splits
from prepare import voc as prepare_voc
from tests.conftest import REPOSITORY

TRAIN = ["2007_000032", "2007_000039", "2007_000063", "2007_000068"]
VAL = ["2007_000033", "2007_000042", "2007_000061"]
SBD_TRAIN = ["2008_000003", "2007_000033", "2007_000032", "2008_000002"]  # one of VOC's val, one of its train
SBD_VAL = ["2011_000003", "2007_000042", "2010_000001", "2008_000007"]
TRAINAUG = [*TRAIN, "2008_000002", "2008_000003", "2008_000007", "2010_000001", "2011_000003"]
LISTS = "ImageSets/Segmentation"


# --- stand-in archives ------------------------------------------------------------------------------------------------


def size_of(name):
    """(height, width): no two names of one size."""
    number = int(name[-6:])
    return 30 + number % 11, 40 + number % 13


def random_mask(name, source):
    """What the dataset ``source`` ("voc", "sbd") says about an image: the two never agree everywhere."""
    rng = np.random.default_rng(list(f"{source} {name}".encode()))
    mask = rng.integers(0, 21, size_of(name)).astype(np.uint8)
    if source == "voc":
        mask[::5] = 255
    return mask


def jpeg(name):
    content = io.BytesIO()
    noise = np.random.default_rng(list(name.encode())).integers(0, 256, (*size_of(name), 3)).astype(np.uint8)
    Image.fromarray(noise).save(content, "JPEG")
    return content.getvalue()


def voc_png(mask):
    content = io.BytesIO()
    image = Image.fromarray(mask)
    image.putpalette(list(range(256)) * 3)
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def mat(segmentation, **options):
    """A file of SBD: a struct GTcls with sparse boundaries, the segmentation and the classes that occur."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix((segmentation == index + 1)[:, ::-1])
    present = np.array([index for index in range(1, 21) if (segmentation == index).any()], np.uint8).reshape(-1, 1)
    content = io.BytesIO()
    savemat(content, {"GTcls": {"Boundaries": boundaries, "Segmentation": segmentation, "CategoriesPresent": present}},
            **{"do_compression": True, **options})
    return content.getvalue()


def lines(names):
    return "".join(f"{name}\n" for name in names).encode()


def voc_files(train=TRAIN, val=VAL, images=(*TRAINAUG, *VAL, "2012_004331")):
    files = {"Annotations/2012_004331.xml": b"<annotation/>", "ImageSets/Main/train.txt": b"2012_004331\n"}
    files |= {f"JPEGImages/{name}.jpg": jpeg(name) for name in images}
    files |= {f"{LISTS}/train.txt": lines(train), f"{LISTS}/val.txt": lines(val),
              f"{LISTS}/trainval.txt": lines(sorted([*train, *val]))}
    files |= {f"SegmentationClass/{name}.png": voc_png(random_mask(name, "voc")) for name in sorted([*train, *val])}
    files |= {f"SegmentationObject/{name}.png": b"not read" for name in sorted([*train, *val])}
    return {f"VOCdevkit/VOC2012/{key}": content for key, content in files.items()}


def sbd_files(train=SBD_TRAIN, val=SBD_VAL):
    names = sorted([*train, *val])
    files = {f"cls/{name}.mat": mat(random_mask(name, "sbd")) for name in names}
    files |= {f"img/{name}.jpg": jpeg(name) for name in names} | {f"inst/{name}.mat": b"not read" for name in names}
    files |= {"cls/._2008_000002.mat": b"a Mac was here", "train.txt": lines(train), "val.txt": lines(val)}
    return {"benchmark_RELEASE/README": b"SBD", "benchmark_RELEASE/benchmark_code/train.txt": b"other\n",
            **{f"benchmark_RELEASE/dataset/{key}": content for key, content in files.items()}}


def write_tar(path, files, *extra):
    mode = "w:gz" if path.suffix in (".tgz", ".gz") else "w"
    with tarfile.open(path, mode) as tar:
        for folder in sorted({str(Path(name).parent) for name in files}):
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    return path


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(VOC's archive, SBD's archive). Do not change them."""
    folder = tmp_path_factory.mktemp("archives")
    return (write_tar(folder / "VOCtrainval_11-May-2012.tar", voc_files()),
            write_tar(folder / "benchmark.tgz", sbd_files()))


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
    """(the dataset made of the archives, what was printed). Do not change it."""
    out = tmp_path_factory.mktemp("prepared") / "VOC2012"
    done = run("--voc", archives[0], "--sbd", archives[1], "--out", out, "--no-counts")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return out, done.stdout


def run(*arguments, cwd="/", **variables):
    """The tool by its path, from another folder."""
    environment = {key: value for key, value in os.environ.items() if key != "VOC_ROOT"} | variables
    return subprocess.run([sys.executable, str(REPOSITORY / "tools" / "prepare_voc.py"), *map(str, arguments)], cwd=cwd,
                          env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def prepare(called, monkeypatch):
    """The tool in this process: (status, standard output, standard error)."""
    monkeypatch.delenv("VOC_ROOT", raising=False)
    return functools.partial(called, prepare_voc.main)


def digests(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*") if path.is_file()}


def refused(result):
    status, _, error = result
    assert status == 2 and len(error.splitlines()) == 1 and error.startswith("error: "), result
    return error


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_what_is_made_of_the_two_archives(prepared, command):
    out, text = prepared
    assert sorted(path.name for path in out.iterdir()) == ["ImageSets", "JPEGImages", "SegmentationClass",
                                                           "SegmentationClassAug"]
    files, spec = voc_files(), load_spec("voc")
    for folder in ("JPEGImages", "SegmentationClass"):
        assert {path.name: path.read_bytes() for path in (out / folder).iterdir()} == {
            Path(key).name: content for key, content in files.items() if f"/{folder}/" in key}
    folder = out / "SegmentationClassAug"
    assert sorted(path.stem for path in folder.iterdir()) == sorted([*TRAINAUG, *VAL])
    for name in [*TRAINAUG, *VAL]:  # VOC's own where it has one, SBD's elsewhere
        with Image.open(folder / f"{name}.png") as image:
            assert image.mode == "P"
            assert (np.array(image) == random_mask(name, "voc" if name in TRAIN or name in VAL else "sbd")).all(), name
            palette = image.getpalette()
        assert [tuple(palette[3 * index:3 * index + 3]) for index in range(21)] == list(spec.palette)
        assert palette[3 * 255:] == [224, 224, 192]
    lists = out / LISTS
    for name, names in (("train.txt", TRAIN), ("val.txt", VAL), ("trainval.txt", sorted(TRAIN + VAL)),
                        ("trainaug.txt", TRAINAUG), ("train_labeled_0.txt", TRAIN),
                        ("train_unlabeled_0.txt", TRAINAUG[4:])):
        assert (lists / name).read_bytes() == lines(names), name
    splits = make_splits(TRAINAUG, [("2", 2), ("4", 4), ("8", 8)])
    assert len(splits) == 24
    for name, names in splits.items():
        assert read_list(lists / name) == names
    assert not (lists / "20_labeled_0.txt").exists()  # 9 / 20: nothing would be labelled
    assert (lists / "8-l_labeled_2.txt").is_file()
    rows = [line.split()[-2:] for line in text.splitlines() if line.startswith(("train", "val"))]
    assert rows[:3] == [["4", "1464"], ["3", "1449"], ["9", "10582"]]
    assert f"export VOC_ROOT={out}" in text.splitlines() and "too few for the splits 20 50 106" in text
    assert command("--check", "--dataset=voc", f"--data-root={out}", "--train-set=train", "--sets-id=0",
                   "--weights=none", "--backbone=small")[0] == 0


def test_official_numbers_are_expected(archives, tmp_path, prepare):
    error = refused(prepare("--voc", archives[0], "--sbd", archives[1], "--out", tmp_path / "out"))
    assert "9 instead of 10582" in error and "3 instead of 1449" in error and "4 instead of 1464" in error
    assert "--no-counts" in error and not (tmp_path / "out" / LISTS / "trainaug.txt").exists()


# --- forms of the sources ---------------------------------------------------------------------------------------------


def test_unpacked_folders_and_other_packings_give_the_same(prepared, tmp_path, prepare):
    voc = write_folder(tmp_path / "unpacked voc", voc_files())
    sbd = write_folder(tmp_path / "unpacked sbd", sbd_files())
    (tmp_path / "sbd").mkdir()
    for path in (sbd / "benchmark_RELEASE" / "dataset").iterdir():  # as torchvision leaves it, here by links
        (tmp_path / "sbd" / path.name).symlink_to(path)
    with zipfile.ZipFile(tmp_path / "sbd.zip", "w") as archive:
        for name, content in sbd_files().items():
            archive.writestr(name, content)
    forms = [(write_tar(tmp_path / "voc.tar.gz", voc_files()), write_tar(tmp_path / "sbd.tar", sbd_files())),
             (write_tar(tmp_path / "voc", voc_files()), tmp_path / "sbd.zip"),
             (voc, sbd), (voc / "VOCdevkit" / "VOC2012", tmp_path / "sbd")]
    for index, form in enumerate(forms):
        out = tmp_path / f"out{index}"
        status, _, error = prepare("--voc", form[0], "--sbd", form[1], "--out", out, "--no-counts")
        assert status == 0 and error == ""
        assert digests(out) == digests(prepared[0])


def test_an_unpacked_voc_is_completed_in_place(prepared, archives, tmp_path, prepare, monkeypatch):
    voc = write_folder(tmp_path, voc_files()) / "VOCdevkit" / "VOC2012"
    before = digests(voc)
    monkeypatch.setenv("VOC_ROOT", str(tmp_path / "elsewhere"))
    status, output, _ = prepare("--voc", tmp_path / "VOCdevkit" / "VOC2012", "--sbd", archives[1], "--no-counts")
    assert status == 0 and f"export VOC_ROOT={voc}" in output
    assert digests(voc) == {**before, **digests(prepared[0])}
    shutil.rmtree(voc / "SegmentationClassAug")
    monkeypatch.setenv("VOC_ROOT", str(voc))
    assert prepare("--sbd", archives[1], "--no-counts")[0] == 0  # neither --voc nor --out
    assert digests(voc) == {**before, **digests(prepared[0])}


def test_images_with_an_animal_are_halved(tmp_path, prepare):
    """Widths and heights are rounded up, masks keep VOC's numbers and colours, and VOC is only read."""
    voc, out = tmp_path / "voc", tmp_path / "animals"
    values = {"a": 12, "b": 15, "c": 17, "d": 8, "e": 3}  # dog, person, sheep; cat, bird
    for name, value in values.items():
        mask = np.zeros((31, 40), np.uint8)
        mask[1, 1], mask[2:9, 4:20], mask[-1] = value, 15, 255  # a single pixel, which the halved mask has not
        pixels = np.add.outer(np.arange(31), np.arange(40))[..., None] * np.uint8([3, 2, 1])
        picture = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(picture, "JPEG", quality=100, subsampling=0)
        write_folder(voc, {f"JPEGImages/{name}.jpg": picture.getvalue(),
                           f"SegmentationClassAug/{name}.png": voc_png(mask)})
    write_folder(voc, {f"{LISTS}/trainaug.txt": lines("abc"), f"{LISTS}/val.txt": lines("de")})
    before = digests(voc)
    status, text, error = prepare("--out", voc, "--animals", out)
    assert status == 0 and "2 of 3 images of trainaug.txt" in text, error
    assert f"export VOC_ANIMALS_ROOT={out}" in text.splitlines()
    assert digests(voc) == before
    assert set(digests(out)) == {f"{LISTS}/trainaug.txt", f"{LISTS}/val.txt", *(
        path for name in "acd" for path in (f"JPEGImages/{name}.jpg", f"SegmentationClassAug/{name}.png"))}
    assert read_list(out / LISTS / "trainaug.txt") == ["a", "c"] and read_list(out / LISTS / "val.txt") == ["d"]
    for name in "acd":
        mask = np.zeros((16, 20), np.uint8)
        mask[1:5, 2:10], mask[-1] = 15, 255
        with Image.open(out / "SegmentationClassAug" / f"{name}.png") as file:
            assert file.mode == "P" and (np.asarray(file) == mask).all()
            assert file.getpalette()[45:48] == [192, 128, 128] and file.getpalette()[765:] == [224, 224, 192]
        with Image.open(out / "JPEGImages" / f"{name}.jpg") as file:
            middle = np.add.outer(2 * np.arange(16), 2 * np.arange(20) + 1)[..., None] * [3, 2, 1]  # of four pixels
            assert file.size == (20, 16) and np.abs(np.asarray(file)[1:-1, 1:-1] - middle[1:-1, 1:-1]).max() <= 8
    for arguments, word in ((("--out", voc, "--animals", voc), "VOC itself"),
                            (("--out", tmp_path, "--animals", tmp_path / "new"), "no training list"),
                            (("--animals", tmp_path / "new"), "--out"),
                            (("--voc", "x.tar", "--out", voc, "--animals", tmp_path / "new"), "neither --voc")):
        assert word in refused(prepare(*arguments))
    assert digests(voc) == before and not (tmp_path / "new").exists()


# --- going on after an interruption -----------------------------------------------------------------------------------


def test_what_is_there_stays_and_what_is_not_is_completed(prepared, archives, tmp_path, prepare):
    out = Path(shutil.copytree(prepared[0], tmp_path / "out"))
    sources = ("--voc", archives[0], "--sbd", archives[1], "--out", out, "--no-counts")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    status, output, _ = prepare(*sources)
    assert status == 0 and "0 files unpacked, 23 were there" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    masks = out / "SegmentationClassAug"
    (out / "JPEGImages" / "2008_000002.jpg").write_bytes(b"\xff\xd8 half")
    (out / "JPEGImages" / "2007_000033.jpg").unlink()
    (out / "SegmentationClass" / "2007_000042.png").write_bytes(b"")
    (masks / "2008_000003.png").unlink()
    (masks / "2007_000032.png").unlink()
    (out / LISTS / "trainaug.txt").unlink()
    (out / LISTS / "val.txt").unlink()
    status, output, _ = prepare(*sources)
    assert status == 0 and "4 files unpacked, 19 were there" in output
    assert digests(out) == digests(prepared[0])


def test_killed_and_started_again_it_ends_the_same(tmp_path):
    names = [f"2009_{index:06d}" for index in range(80)]
    voc = write_tar(tmp_path / "voc.tar", voc_files(images=(*TRAINAUG, *VAL, *names)))
    sbd = write_tar(tmp_path / "sbd.tgz", sbd_files(train=[*SBD_TRAIN, *names]))
    options = ("--voc", voc, "--sbd", sbd, "--no-counts", "--out")
    assert run(*options, tmp_path / "whole").returncode == 0
    out = tmp_path / "out"
    for folder, count in (("JPEGImages", 3), ("SegmentationClassAug", 9)):
        process = subprocess.Popen([sys.executable, "-m", "tools.prepare_voc", *map(str, options), str(out)],
                                   cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        while len(list((out / folder).glob("*.*"))) < count and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(*options, out).returncode == 0
    assert digests(out) == digests(tmp_path / "whole")


# --- what is wrong with the sources -----------------------------------------------------------------------------------


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_what_leads_out_of_an_archive_is_not_unpacked(archives, prepared, tmp_path, prepare):
    voc = write_tar(tmp_path / "voc.tar", {**voc_files(), "VOCdevkit/../JPEGImages/../../evil.jpg": b"",
                                           "/JPEGImages/evil.png": b""},
                    link("VOCdevkit/VOC2012/JPEGImages", "/etc"),
                    link("VOCdevkit/VOC2012/JPEGImages/evil.jpg", "/etc/passwd"),
                    link("JPEGImages/evil.jpg", "/etc/passwd", tarfile.LNKTYPE))
    out = tmp_path / "sub" / "out"
    assert prepare("--voc", voc, "--sbd", archives[1], "--out", out, "--no-counts")[0] == 0
    assert digests(out) == digests(prepared[0]) and not list(tmp_path.rglob("*evil*"))


def damaged(content, how):
    middle = len(content) // 2
    if how == "cut off":
        return content[:middle]
    if how == "a byte":
        return content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1:]
    if how == "checksum":
        return content[:-8] + bytes(4) + content[-4:]
    return how.encode()


@pytest.mark.parametrize("which, how", [("voc", "cut off"), ("voc", "<html>"), ("voc", ""), ("sbd", "cut off"),
                                        ("sbd", "a byte"), ("sbd", "checksum")])
def test_a_damaged_archive_is_named(archives, tmp_path, prepare, which, how):
    paths = dict(zip(("voc", "sbd"), archives))
    broken = tmp_path / paths[which].name
    broken.write_bytes(damaged(paths[which].read_bytes(), how))
    paths[which] = broken
    error = refused(prepare("--voc", paths["voc"], "--sbd", paths["sbd"], "--out", tmp_path / "out", "--no-counts"))
    assert str(broken) in error and "damaged" in error
    assert not (tmp_path / "out" / LISTS / "trainaug.txt").exists()


def wrong(name, value, dtype=np.uint8):
    mask = random_mask(name, "sbd").astype(dtype)
    mask[3, 4] = value
    return mask


BAD_MATS = {
    "no MAT file": (b"not a MAT file, but long enough to be read as one" * 9, "damaged"),
    "cut off": (mat(random_mask("2008_000007", "sbd"))[:-50], "damaged"),
    "empty": (b"", "damaged"),
    "no class": (mat(wrong("2008_000007", 21)), "value 21"),
    "fractions": (mat(wrong("2008_000007", 1.5, float)), "value 1.5"),
    "another size": (mat(random_mask("2008_000002", "sbd")), "one size"),
}


@pytest.mark.parametrize("content, word", BAD_MATS.values(), ids=BAD_MATS)
def test_a_bad_mat_file_is_named_and_the_rest_goes_on_later(prepared, archives, tmp_path, prepare, content, word):
    key = "benchmark_RELEASE/dataset/cls/2008_000007.mat"
    sbd = write_tar(tmp_path / "benchmark.tar", {**sbd_files(), key: content})
    out = tmp_path / "out"
    error = refused(prepare("--voc", archives[0], "--sbd", sbd, "--out", out, "--no-counts"))
    assert f"cls/2008_000007.mat in {sbd}" in error and word in error
    assert not (out / "SegmentationClassAug" / "2008_000007.png").exists() and not list(out.rglob("*.tmp*"))
    assert not (out / LISTS / "trainaug.txt").exists()
    assert prepare("--voc", archives[0], "--sbd", archives[1], "--out", out, "--no-counts")[0] == 0
    assert digests(out) == digests(prepared[0])


def test_mats_of_other_writers_are_read():
    mask = random_mask("2008_000007", "sbd")
    for content in (mat(mask, do_compression=False), mat(mask.astype(float)), mat(mask.astype(np.int16))):
        found = prepare_voc.read_sbd_mask(content, "it", 21)
        assert found.dtype == np.uint8 and (found == mask).all()


VOC = "VOCdevkit/VOC2012"
BAD_CONTENT = {
    "a mask with other values": (f"{VOC}/SegmentationClass/2007_000039.png", voc_png(wrong("2007_000039", 77)), "77"),
    "a mask of another size": (f"{VOC}/SegmentationClass/2007_000039.png", voc_png(random_mask("2007_000063", "voc")),
                               "one size"),
    "a broken mask": (f"{VOC}/SegmentationClass/2007_000039.png", voc_png(random_mask("2007_000039", "voc"))[:-40],
                      "2007_000039.png"),
    "an image that is none": (f"{VOC}/JPEGImages/2008_000002.jpg", b"no JPEG", "2008_000002.jpg"),
    "no image": (f"{VOC}/JPEGImages/2008_000002.jpg", None, "JPEGImages/2008_000002.jpg"),
    "no mask": (f"{VOC}/SegmentationClass/2007_000042.png", None, "2007_000042.png"),
    "no list": (f"{VOC}/{LISTS}/val.txt", None, f"{LISTS}/val.txt"),
    "a list with a path": (f"{VOC}/{LISTS}/val.txt", b"../../2007_000033\n", "line 1"),
    "a training image in val.txt": (f"{VOC}/{LISTS}/val.txt", lines([*VAL, TRAIN[1]]), TRAIN[1]),
}


@pytest.mark.parametrize("key, content, word", BAD_CONTENT.values(), ids=BAD_CONTENT)
def test_bad_content_of_voc_is_named(archives, tmp_path, prepare, key, content, word):
    files = {name: value for name, value in {**voc_files(), key: content}.items() if value is not None}
    voc = write_tar(tmp_path / "voc.tar", files)
    error = refused(prepare("--voc", voc, "--sbd", archives[1], "--out", tmp_path / "out", "--no-counts"))
    assert word in error
    assert not (tmp_path / "out" / LISTS / "trainaug.txt").exists()


def test_sbd_without_a_mask_or_a_list_and_mixed_up_archives(archives, tmp_path, prepare):
    voc, sbd = archives
    for key, word in (("cls/2010_000001.mat", "cls/2010_000001.mat"), ("val.txt", "lacks train.txt or val.txt")):
        files = sbd_files()
        del files[f"benchmark_RELEASE/dataset/{key}"]
        source = write_folder(tmp_path / key.replace("/", "-"), files)
        assert word in refused(prepare("--voc", voc, "--sbd", source, "--out", tmp_path / key[:3], "--no-counts"))
    for sources in (("--voc", sbd, "--sbd", voc), ("--voc", voc, "--sbd", voc)):
        assert "another archive" in refused(prepare(*sources, "--out", tmp_path / "out"))


def test_somebodys_own_list_is_not_replaced(archives, tmp_path, prepare):
    own = tmp_path / "out" / LISTS / "val.txt"
    own.parent.mkdir(parents=True)
    own.write_text("2007_000033\n")
    refused(prepare("--voc", archives[0], "--sbd", archives[1], "--out", tmp_path / "out"))
    assert own.read_text() == "2007_000033\n"


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, word", [
    ([], "--out"), (["--out", "out"], "--voc"), (["--out", "out", "--voc", "VOC"], "--sbd"),
    (["--out", "out", "--voc", "missing.tar", "--sbd", "SBD"], "missing.tar"),
    (["--out", "file", "--voc", "VOC", "--sbd", "SBD"], "file"), (["--no-such-option"], "--no-such-option")])
def test_what_a_user_can_get_wrong(archives, tmp_path, prepare, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    names = dict(zip(("VOC", "SBD"), map(str, archives)))
    assert word in refused(prepare(*(names.get(argument, argument) for argument in arguments)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "file"]


class Quiet(SimpleHTTPRequestHandler):
    """A file server that keeps no log."""

    def log_message(self, *_):
        """Nothing."""


def test_the_archives_are_downloaded_once(archives, prepared, tmp_path, prepare, monkeypatch):
    """torchvision's addresses lead to the stand-in archives on this machine."""
    from torchvision.datasets import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(archives[0].parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    voc, sbd = (hashlib.md5(path.read_bytes()).hexdigest() for path in archives)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "url", f"{address}/{archives[0].name}")
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "md5", voc)
    monkeypatch.setattr(SBDataset, "url", f"{address}/{archives[1].name}")
    monkeypatch.setattr(SBDataset, "md5", sbd)
    out = tmp_path / "out"
    status, output, _ = prepare("--download", "--out", out, "--no-counts")
    assert status == 0 and "downloading VOC" in output
    assert sorted(path.name for path in (out / "archives").iterdir()) == [path.name for path in archives]
    server.shutdown()
    server.server_close()
    shutil.rmtree(out / "JPEGImages")
    assert prepare("--download", "--out", out, "--no-counts")[0] == 0  # from the archives that are there
    shutil.rmtree(out / "archives")
    assert digests(out) == digests(prepared[0])
    error = refused(prepare("--download", "--voc", archives[0], "--out", tmp_path / "other"))
    assert f"{archives[1].name} could not be downloaded" in error and "--sbd" in error


@pytest.mark.parametrize("tool, word", [
    ("prepare_voc", "benchmark.tgz"), ("prepare_cityscapes", "leftImg8bit_trainvaltest.zip"),
    ("new_dataset", "default"), ("convert_coco", "default"), ("convert_rgb", "default")])
def test_help_is_quick(script, tool, word):
    done = script("-X", "importtime", REPOSITORY / "tools" / f"{tool}.py", "--help")
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and word in done.stdout and "torch" not in loaded

#!/usr/bin/env bash
# Downloads the COCO weights (Caffe DeepLab-ResNet-101 of Hung et al., about 170 MB) and converts them to
# voc_coco_resnet101.pt and city_coco_resnet101.pt. An interrupted download goes on where it stopped; what is there
# already is kept. For a dataset of your own with N classes, run after it:
#     .venv/bin/python -m models.weights convert-coco resnet101COCO-41f33a49.pth --num-classes=N
#
# Variables, to be set in front of the command:
#   COCO_DIR=FOLDER  for the download and the converted files; where it is not set, the folder of this script
#   COCO_URL=URL     of the download; the name ends with the first digits of the file's SHA-256, as in ...-41f33a49.pth
#   PYTHON=FILE      interpreter; where it is not set, the repository's .venv/bin/python if it is there, else python3
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
COCO_DIR=${COCO_DIR:-$root}
COCO_URL=${COCO_URL:-http://vllab1.ucmerced.edu/~whung/adv-semi-seg/resnet101COCO-41f33a49.pth}

fail() { echo "error: $*" >&2; exit 2; }

case ${1:-} in
    "") ;;
    -h | --help) sed -n '2,/^[^#]/ { s/^# \{0,1\}//p; }' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown argument '$1' (see $0 --help)" ;;
esac

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; fi
fi
mkdir -p "$COCO_DIR" 2> /dev/null || fail "the folder $COCO_DIR cannot be made; choose another one with COCO_DIR"
COCO_DIR=$(cd "$COCO_DIR" && pwd -P)
file=$COCO_DIR/${COCO_URL##*/}
digits=${file##*-} digits=${digits%.*}

if [ -f "$COCO_DIR/voc_coco_resnet101.pt" ] && [ -f "$COCO_DIR/city_coco_resnet101.pt" ]; then
    echo "voc_coco_resnet101.pt and city_coco_resnet101.pt are already in $COCO_DIR"
    exit 0
fi

# intact FILE: does its SHA-256 start with the digits in the name of the download?
intact() { [ -f "$1" ] && [[ "$(sha256sum "$1")" == "$digits"* ]]; }

# fetch WORD ...: run the program that downloads to $file.part.
by_hand="download it with a browser and put it at $file, then start this script again"
fetch() {
    "$@" "$COCO_URL" || fail "the download of $COCO_URL failed ($1: $?); start again to go on with it, or $by_hand"
}

if [ -f "$file" ]; then
    intact "$file" || fail "$file is damaged: its SHA-256 does not start with $digits; delete it and start again"
else
    if ! intact "$file.part"; then
        echo "downloading $COCO_URL"
        if command -v curl > /dev/null; then
            if [ -t 2 ]; then shown=--progress-bar; else shown=--silent; fi
            fetch curl $shown --fail --location --retry 3 --continue-at - --output "$file.part"
        elif command -v wget > /dev/null; then
            fetch wget --quiet --continue --output-document="$file.part"
        else
            fail "there is neither curl nor wget to download $COCO_URL; install one, or $by_hand"
        fi
    fi
    if ! intact "$file.part"; then
        rm -f "$file.part"
        fail "what came from $COCO_URL is another file: its SHA-256 does not start with $digits; $by_hand"
    fi
    mv "$file.part" "$file"
fi
if [[ "$PYTHON" == */* ]]; then PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON"); fi
cd "$root"
"$PYTHON" -m models.weights convert-coco "$file" --out "$COCO_DIR"

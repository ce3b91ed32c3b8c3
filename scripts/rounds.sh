#!/usr/bin/env bash
# Sourced by the launchers: derives the names of stages, checkpoints and folders, and calls main.py. A launcher sets the
# numbers of its experiment, sources this file, and writes its rounds down with the functions below.
#
# The stage EXP__pROUND--ARM trains ARM in ROUND and writes OUTPUT_DIR/EXP__pROUND--ARM.pt; round 0 is supervised. Round
# N starts from the checkpoints of round N-1: with them the arms label, into OUTPUT_DIR/pseudo/EXP__p(N-1)--ARM.
set -euo pipefail

# "" in the repository's root, else the root's path with a slash: paths in commands stay short where they can, and since
# the working directory is left alone, relative paths mean what the user meant.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/
if [ "$root" = "$(pwd -P)/" ]; then root=; fi

# Variables of every launcher:
OUTPUT_DIR=${OUTPUT_DIR:-${root}runs/$exp}  # folder for everything written
DATA_ROOT=${DATA_ROOT:-}  # folder of the dataset; empty: VOC_ROOT, CITYSCAPES_ROOT, ... from the environment
LISTS_DIR=${LISTS_DIR:-}  # folder of the split lists; empty: inside the dataset
MIXED_PRECISION=${MIXED_PRECISION:-1}  # 0: float32 throughout
PYTHON=${PYTHON:-}  # interpreter; empty: the repository's .venv/bin/python if it is there, else python3
NPROC=${NPROC:-1}  # processes that share every stage on this machine, one for each GPU (torchrun)
NNODES=${NNODES:-1}  # machines that share every stage: start the launcher on each of them, with one common OUTPUT_DIR
RDZV=${RDZV:-}  # HOST:PORT where NNODES machines meet: the name of one of them, and the first of 16 free ports
RDZV_TIMEOUT=${RDZV_TIMEOUT:-1800}  # seconds that one waits for the others
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-}}  # 0 on the machine that checks and tidies; empty: the first to start does
ARMS_PARALLEL=${ARMS_PARALLEL:-}  # 1, or the option --arms-parallel: both arms at the same time, each on its own GPUs
EXTRA=${EXTRA:-}  # more options for every main.py, as in EXTRA="--workers=4 --aspp-branches=4"
KEEP=${KEEP:-}  # 1: keep the pseudo labels and predictions of every round instead of removing what has served
BASELINE=${BASELINE:-}  # run folder whose supervised result the report shows, where OUTPUT_DIR has no such arm
REPORT=${REPORT:-1}  # OUTPUT_DIR/report/index.html: 1 after every round and while it runs, end at the end only, 0 none
CHECK=${CHECK:-1}  # 0: do not check images, lists, weights, disk and memory before the first stage
DRY_RUN=${DRY_RUN:-}  # 1: print every command instead of running it

if [ -z "$PYTHON" ]; then
    PYTHON=python3
    if [ -x "${root}.venv/bin/python" ]; then PYTHON=${root}.venv/bin/python; fi
fi
if [ "$DRY_RUN" = 0 ]; then DRY_RUN=; fi
if [ "$KEEP" = 0 ]; then KEEP=; fi
if [ "$ARMS_PARALLEL" = 0 ]; then ARMS_PARALLEL=; fi
first_options=()  # more options for a training from first weights, the check, every labelling, every training of a round
check_options=()
label_options=()
train_options=()

fail() {
    echo "error: $*" >&2
    exit 2
}

# The comment on top of the launcher, then every variable with its default and its meaning.
print_help() {
    sed -n '2,/^[^#]/ { s/^# \{0,1\}//p; }' "$1"
    echo
    echo "Variables, to be set in front of the command as in: ep=1 DRY_RUN=1 $0"
    sed -nE 's/^([A-Za-z0-9_]+)=\$\{[A-Za-z0-9_]+:?-(.*)\}([[:space:]]+#[[:space:]]*(.*))?$/  \1=\2|\4/p' \
        "$1" "${BASH_SOURCE[0]}" | awk -F'|' '
            { name = $1; sub(/=.*/, "", name) }
            !(name in line) { line[name] = $1; order[++count] = name }  # the launcher comes first: its own default
            meaning[name] == "" { meaning[name] = $2 }
            END { for (i = 1; i <= count; i++) printf "%-40s %s\n", line[order[i]], meaning[order[i]] }'
}

case ${1:-} in
    "") ;;
    -h | --help) print_help "${BASH_SOURCE[-1]}"; exit 0 ;;
    --arms-parallel) export ARMS_PARALLEL=1; shift ;;
esac
if [ $# != 0 ]; then fail "unknown argument '$1': numbers are set in the environment, as in ep=1 $0 (see $0 --help)"; fi

source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"
check_processes

name() { echo "${exp}__p$1--$2"; }               # name ROUND ARM
checkpoint() { echo "$OUTPUT_DIR/$(name "$@").pt"; }     # checkpoint ROUND ARM
pseudo_dir() { echo "$OUTPUT_DIR/pseudo/$(name "$@")"; } # pseudo_dir ROUND ARM: labels made by that checkpoint
seed_of() { local variable=seed_$1; echo "${!variable}"; }
seed0_of() { local variable=seed0_$1; echo "${!variable:-$(seed_of "$1")}"; }  # in round 0

# is_coco ARM: does the arm descend from the COCO weights? Then every stage of it takes --coco.
is_coco() {
    [ -n "$coco_weights" ] && [[ " $coco_arms " == *" $1 "* ]]
}

# of_round "VALUES" ROUND: the value of that round; the last one serves all further rounds.
of_round() {
    local values
    read -ra values <<< "$1"
    local index=$(($2 <= ${#values[@]} ? $2 - 1 : ${#values[@]} - 1))
    echo "${values[index]}"
}

# call WORD ...: run the command, or print it ready for a shell.
call() {
    printf '%q' "$1"
    printf ' %q' "${@:2}"
    printf '\n'
    if [ -z "$DRY_RUN" ]; then "$@"; fi
}

# One launcher at a time in an output folder. The stages inherit the lock, so it lasts as long as any of them runs, and
# the system frees it when the last one ends, however it ends. Of several machines the one that holds it leads: it does
# what is done once.
leads=1
lock_run() {
    if [ "$NNODES" != 1 ] && [ "${NODE_RANK:-0}" != 0 ]; then leads=; return; fi
    if [ -n "$DRY_RUN" ] || ! command -v flock > /dev/null; then return; fi
    mkdir -p "$OUTPUT_DIR" 2> /dev/null || fail "the folder $OUTPUT_DIR cannot be written; set OUTPUT_DIR"
    exec 9>> "$OUTPUT_DIR/.lock" || fail "the folder $OUTPUT_DIR cannot be written; set OUTPUT_DIR"
    if ! flock -n 9; then
        if [ "$NNODES" != 1 ] && [ -z "$NODE_RANK" ]; then leads=; exec 9>&-; return; fi
        fail "another launcher works in $OUTPUT_DIR; wait for it to end, or set another OUTPUT_DIR"
    fi
    echo "process $$ on $(uname -n)" > "$OUTPUT_DIR/.lock"
}

# once WORD ...: call them, on one machine.
once() {
    if [ -n "$leads" ]; then call "$@"; fi
}

# stage OPTION ...: main.py with these options and those of every stage.
stage() {
    local words=("${root}main.py" "$@" --dataset="$dataset" --output-dir="$OUTPUT_DIR") extra
    if [ -n "$DATA_ROOT" ]; then words+=(--data-root="$DATA_ROOT"); fi
    if [ -n "$LISTS_DIR" ]; then words+=(--lists-dir="$LISTS_DIR"); fi
    if [ "$MIXED_PRECISION" != 0 ]; then words+=(--mixed-precision); fi
    read -ra extra <<< "$EXTRA"
    words+=("${extra[@]}")
    if [ "$NPROC" = 1 ] && [ "$NNODES" = 1 ]; then
        call "$PYTHON" "${words[@]}"
    else
        on_processes "${words[@]}"
        call_processes "${words[@]}"
    fi
}

# make_lists FOLDER: the split lists go there, unless LISTS_DIR says where they are: the data are only read.
make_lists() {
    local data=(--dataset="$dataset" ${DATA_ROOT:+--data-root="$DATA_ROOT"})
    if [ -z "$LISTS_DIR" ]; then
        LISTS_DIR=$1
        once "$PYTHON" "${root}generate_splits.py" "${data[@]}" --out="$LISTS_DIR"
        once "$PYTHON" "${root}dms_sample.py" "${data[@]}" --lists="$LISTS_DIR" --out="$LISTS_DIR"
    fi
    export LISTS_DIR
}

# coco_file: the COCO weights, beside the launcher when they are not where it was started.
coco_file() {
    local weights=$coco_weights
    if [ ! -f "$weights" ] && [ "${weights#/}" = "$weights" ]; then weights=$root$weights; fi
    echo "$weights"
}

# need_coco ARM: fail in one line when the arm still has to start from COCO weights and they are not there.
need_coco() {
    if [ -z "$DRY_RUN" ] && [ ! -f "$(coco_file)" ] && [ ! -f "$(checkpoint 0 "$1")" ]; then
        fail "the COCO weights $(coco_file) are missing; run ${root:-./}prepare_coco.sh first"
    fi
}

# check_run ARM ...: before the night, not after: everything that the run of these arms needs, all findings at once.
check_run() {
    if [ -n "$DRY_RUN" ] || [ "$CHECK" = 0 ]; then return; fi
    local options=(--check --train-set="$split" --sets-id="$id" --batch-size-labeling="$batch_labeling") arm start=
    local other=
    for arm in "$@"; do
        if ! is_coco "$arm"; then
            if [ ! -f "$(checkpoint 0 "$arm")" ]; then other=1; fi
        else
            need_coco "$arm"
            start=$(coco_file)
            if [ ! -f "$start" ]; then start=$(checkpoint 0 "$arm"); fi
        fi
    done
    if [ -n "$start" ]; then options+=(--coco --continue-from="$start"); fi
    if [ -z "$start" ] && [ -z "$other" ]; then options+=(--continue-from="$(checkpoint 0 "$1")"); fi
    if [ -n "$start" ] && [ -n "$other" ]; then options+=(--check-weights); fi
    if [ -n "$other" ]; then options+=("${first_options[@]}"); fi
    stage "${options[@]}" "${check_options[@]}"
}

# train_labeled STAGE ARM SPLIT EPOCHS SEED VAL_NUM_STEPS: supervised training of an arm from its first weights.
train_labeled() {
    local options=(--exp-name="$1" --state=2 --train-set="$3" --sets-id="$id")
    if is_coco "$2"; then
        need_coco "$2"
        options+=(--coco --continue-from="$(coco_file)")
    else
        options+=("${first_options[@]}")
    fi
    stage "${options[@]}" --epochs="$4" --batch-size-labeled="$batch0" --lr="$lr0" --weight-decay="$weight_decay" \
        --seed="$5" --val-num-steps="$6"
}

# round0 ARM SPLIT: round 0 of an arm, on the labelled images of SPLIT.
round0() {
    train_labeled "$(name 0 "$1")" "$1" "$2" "$ep0" "$(seed0_of "$1")" "$val0"
}

# round0_of_both ARM SPLIT ARM SPLIT: round 0 of both arms, each on its labelled images.
round0_of_both() {
    begin "$(name 0 "$1")" round0 "$1" "$2"
    begin "$(name 0 "$3")" round0 "$3" "$4"
    finish "$(name 0 "$1")" "$(name 0 "$3")"
}

# label ROUND ARM RATIO: the arm labels the unlabelled images with its checkpoint of the round before; from round 2 on
# with PLE, for which the checkpoint of yet a round earlier labels too. An empty beta leaves PLE out: plain DMT.
label() {
    local last=$(($1 - 1)) arm=$2
    local options=(--labeling --train-set="$split" --sets-id="$id")
    if is_coco "$arm"; then options+=(--coco); fi
    options+=(--continue-from="$(checkpoint $last "$arm")")
    if [ $last -gt 0 ] && [ -n "$beta" ]; then
        options+=(--oldfilename="$(checkpoint $((last - 1)) "$arm")" --Increment="$beta")
        if [ "${previous_statistics:=running}" != running ]; then
            options+=(--previous-statistics="$previous_statistics")
        fi
    fi
    stage "${options[@]}" --label-ratio="$3" --batch-size-labeling="$batch_labeling" \
        --pseudo-dir="$(pseudo_dir $last "$arm")" "${label_options[@]}"
}

# train ROUND ARM TEACHER: the arm goes on from its checkpoint of the round before, on labels of the teacher's.
train() {
    local last=$(($1 - 1)) arm=$2 teacher=$3
    local options=(--exp-name="$(name "$1" "$arm")" --state=1 --train-set="$split" --sets-id="$id")
    if is_coco "$arm"; then options+=(--coco); fi
    options+=(--continue-from="$(checkpoint $last "$arm")" --pseudo-dir="$(pseudo_dir $last "$teacher")"
        --epochs="$ep" --batch-size-labeled="$(of_round "$batch_labeled" "$1")"
        --batch-size-pseudo="$(of_round "$batch_pseudo" "$1")" --lr="$lr" --weight-decay="$weight_decay"
        --gamma1="$gamma1" --gamma2="$gamma2" --seed="$(seed_of "$arm")" --val-num-steps="$val" "${train_options[@]}")
    local status=0
    stage "${options[@]}" || status=$?
    if [ $status = 3 ]; then  # the labels had been removed after they had served, and the training changed since
        label "$1" "$teacher" "$(of_round "$ratios" "$1")"
        status=0
        stage "${options[@]}" || status=$?
    fi
    if [ $status != 0 ]; then exit $status; fi
}

# half ROUND TEACHER STUDENT RATIO: the student learns from the teacher's labels.
half() {
    label "$1" "$2" "$4"
    train "$1" "$3" "$2"
}

# teach_each_other ROUND ARM ARM RATIO: the first arm labels, the second learns from that; then the other way round. Both
# label with their checkpoints of the round before, so the order does not matter, and both halves may run at once.
teach_each_other() {
    begin "$(name "$1" "$3")" half "$1" "$2" "$3" "$4"
    begin "$(name "$1" "$2")" half "$1" "$3" "$2" "$4"
    finish "$(name "$1" "$3")" "$(name "$1" "$2")"
}

# tidy ROUND ARM ...: after both halves of a round, remove what no later stage needs: the labels it was trained on, and
# the predictions of the round before. The predictions of this round are PLE's "previous" in the next. The last round's
# labels stay, to be looked at.
tidy() {
    if [ -z "$leads" ] || [ -n "$DRY_RUN" ] || [ -n "$KEEP" ] || [ "$1" = "$(wc -w <<< "$ratios")" ]; then return; fi
    local last=$(($1 - 1)) arm folder
    for arm in "${@:2}"; do
        folder=$(pseudo_dir $last "$arm")
        touch "$folder/pruned"  # first, so that a labelling that is half removed is not taken for a damaged one
        rm -rf "$folder/labels" "$folder/confidence" "$folder/previous"
        if [ $last -gt 0 ]; then rm -rf "$(pseudo_dir $((last - 1)) "$arm")/logits"; fi
    done
}

# report ROUND ARM ...: the report of the run so far, before tidy removes what it looks at. A night's work does not stop
# for it.
report() {
    local beside=()
    if [ -z "$leads" ] || [ "$REPORT" = 0 ] || [ "$REPORT" = end -a "$1" != "$(wc -w <<< "$ratios")" ]; then return; fi
    if compgen -G "${BASELINE:-none}/*/result.json" > /dev/null; then beside=(--baseline="$BASELINE"); fi
    call "$PYTHON" "${root}tools/report.py" "$OUTPUT_DIR" --exp="$exp" --rounds="$(wc -w <<< "$ratios")" "${beside[@]}" \
        --arms "${@:2}" || echo "warning: the report was not written; the chain goes on" >&2
}

# watch_report ARM ...: while the launcher lives, its report shows every minute how far the stage that runs is.
watch_report() {
    if [ -z "$leads" ] || [ -n "$DRY_RUN" ] || [ "$REPORT" != 1 ]; then return; fi
    nice "$PYTHON" "${root}tools/report.py" "$OUTPUT_DIR" --exp="$exp" --rounds="$(wc -w <<< "$ratios")" \
        --progress-only --watch=60 --arms "$@" > /dev/null 2>&1 < /dev/null 9>&- &
}

# test_arm ROUND ARM: validation of a finished stage, class by class.
test_arm() {
    local options=(--state=3)
    if is_coco "$2"; then options+=(--coco); fi
    stage "${options[@]}" --continue-from="$(checkpoint "$1" "$2")"
}

# The mIoU of every stage so far, as log.txt has them.
print_results() {
    if [ -z "$leads" ] || [ -n "$DRY_RUN" ]; then return; fi
    printf '\n%-44s %s\n' "stage" "best validation mIoU (%)"
    awk -F': ' '{ printf "%-44s %.2f\n", $1, $2 }' "$OUTPUT_DIR/log.txt"
}

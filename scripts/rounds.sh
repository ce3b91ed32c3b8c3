#!/usr/bin/env bash
# Sourced by every launcher after the numbers of its experiment: names the stages and calls main.py. A launcher then
# calls "start ARM ...", and writes its rounds down with the functions below.
#
# The stage EXP__pROUND--ARM trains ARM in ROUND and writes OUTPUT_DIR/EXP__pROUND--ARM.pt; round 0 is supervised. Round
# N starts from the checkpoints of round N-1: with them the arms label, into OUTPUT_DIR/pseudo/EXP__p(N-1)--ARM.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

# "" in the repository's root, else the root's path with a slash: paths in commands stay short where they can, and since
# the working directory is left alone, relative paths mean what the user meant.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/
if [ "$root" = "$(pwd -P)/" ]; then root=; fi
python=${root}.venv/bin/python
if [ ! -x "$python" ]; then python=python3; fi

# Arguments become variables of the environment, and the launcher starts again. "positional" is the number that one word
# without a name is for; "passed_on" are names that a launcher hands on to others.
if [ $# != 0 ]; then
    "$python" "${root}scripts/numbers.py" "$0" "${positional:-}" "${passed_on:-}" "${BASH_SOURCE[@]}" -- "$@"
    for word in "$@"; do
        case $word in
            -h | --help) exit ;;
            --arms-parallel) export ARMS_PARALLEL=1 ;;
            [A-Za-z_]*=*) export "$word" ;;
            *) export "$positional=$word" ;;
        esac
    done
    exec bash "$0"
fi

# Of every launcher:
OUTPUT_DIR=${OUTPUT_DIR:-${root}runs/$exp}  # folder for everything written
DATA_ROOT=${DATA_ROOT:-}  # folder of the dataset; empty: VOC_ROOT, CITYSCAPES_ROOT, ... from the environment
LISTS_DIR=${LISTS_DIR:-}  # folder of the split lists; empty: inside the dataset, or OUTPUT_DIR/lists if they are made
MIXED_PRECISION=${MIXED_PRECISION:-1}  # 0: float32 throughout
PYTHON=${PYTHON:-}  # interpreter; empty: the repository's .venv/bin/python if it is there, else python3
NPROC=${NPROC:-1}  # processes that share every stage on this machine, one for each GPU (torchrun)
LAUNCH=${LAUNCH:-}  # for several machines: what starts torchrun on each, as in LAUNCH="srun torchrun --nnodes=2 ..."
ARMS_PARALLEL=${ARMS_PARALLEL:-}  # 1, or the argument --arms-parallel: both arms at the same time, each on its own GPUs
EXTRA=${EXTRA:-}  # more options for every main.py, as in EXTRA="--workers=4 --aspp-branches=4"
KEEP=${KEEP:-}  # 1: keep the predictions of every round instead of removing what has served
BASELINE=${BASELINE:-}  # run folder whose supervised result the report shows, where OUTPUT_DIR has no such arm
REPORT=${REPORT:-1}  # 0: no OUTPUT_DIR/report/index.html, which is brought up to date after every stage
CHECK=${CHECK:-1}  # 0: do not check images, lists, weights, disk and memory before the first stage
REDO=${REDO:-}  # 1: finished stages whose numbers have changed may be done again
DRY_RUN=${DRY_RUN:-}  # 1: print every command instead of running it

# The network, where it is not the papers':
backbone=${backbone:-resnet101}  # or resnet50, small, timm/NAME: of arms that do not start from COCO weights
output_stride=${output_stride:-}  # of a timm encoder, 8 or 16; empty: its default
weights=${weights:-}  # first weights of the backbone: a file, or none for random ones; empty: downloaded

# Rounds of mutual training, one for each ratio:
previous_statistics=${previous_statistics:-running}  # of PLE's previous network; batch: of each batch, as released

PYTHON=${PYTHON:-$python}
home=~  # of a ~ in quotes
for name in OUTPUT_DIR DATA_ROOT LISTS_DIR BASELINE; do declare "$name=${!name/#\~\//$home/}"; done
for name in ARMS_PARALLEL KEEP REDO DRY_RUN; do if [ "${!name}" = 0 ]; then declare "$name="; fi; done
for name in ARMS_PARALLEL KEEP REDO REPORT CHECK MIXED_PRECISION ORACLE halves DRY_RUN; do
    [[ ${!name:-} =~ ^[01]?$ || $name=${!name} = DRY_RUN=plan ]] || fail "$name is '${!name}'; it must be 0 or 1"
done
if [ -n "$LAUNCH" ] && [[ " $LAUNCH " != *" torchrun "* || -n $ARMS_PARALLEL ]]; then
    fail "LAUNCH is '$LAUNCH'; it needs the word torchrun, and goes without ARMS_PARALLEL, which is for one machine"
fi
[[ $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC is '$NPROC'; it must be a positive whole number"
declare -A planned=()  # command -> which of all stages it is
declare -A running=()  # job beside this shell -> process group
several_runs=  # 1: OUTPUT_DIR is not a run folder itself, but holds some
exec 3>&1  # what the launcher prints, from within a job, too
all_options=() label_options=() train_options=()  # more options: of every main.py, a labelling, a training in a round

# --- names ------------------------------------------------------------------------------------------------------------

name() { echo "${exp}__p$1--$2"; }                       # name ROUND ARM
checkpoint() { echo "$OUTPUT_DIR/$(name "$@").pt"; }     # checkpoint ROUND ARM
pseudo_dir() { echo "$OUTPUT_DIR/pseudo/$(name "$@")"; } # pseudo_dir ROUND ARM: labels made by that checkpoint
rounds() { wc -w <<< "$ratios"; }

# coco ARM: --coco where the arm descends from COCO weights.
coco() { if [ -n "$coco_weights" ] && [[ " $coco_arms " == *" $1 "* ]]; then echo --coco; fi; }

# of_round "VALUES" ROUND: the value of that round; the last one serves all further rounds.
of_round() { local values=($1); echo "${values[$2 - 1]:-${values[-1]}}"; }

# --- stages -----------------------------------------------------------------------------------------------------------

# call WORD ...: print the command, ready for a shell, and run it. In a plan a control character separates the words.
call() {
    local IFS=$'\x1f' line
    if [ "$DRY_RUN" = plan ]; then echo "$*"; return; fi
    if [ -n "${planned[$*]:-}" ]; then echo "# stage ${planned[$*]} of ${#planned[@]}"; fi
    printf -v line ' %q' "$@"
    echo "${line:1}"
    if [ -z "$DRY_RUN" ]; then "$@"; fi
}

# module NAME WORD ...: one of the repository's modules, from wherever the launcher was started.
module() { call env PYTHONPATH="${root:-.}" "$PYTHON" -m "$@"; }

# stage OPTION ...: main.py with these options and those of every stage, in one process or by torchrun.
stage() {
    local words=("$PYTHON") launch extra word
    if [ "$NPROC$LAUNCH" != 1 ]; then
        words=()
        read -ra launch <<< "${LAUNCH:-torchrun --standalone --nproc-per-node=$NPROC}"
        for word in "${launch[@]}"; do
            if [ "$word" = torchrun ]; then words+=("$PYTHON" -m torch.distributed.run); else words+=("$word"); fi
        done
    fi
    words+=("${root}main.py" "$@" --dataset="$dataset" --output-dir="$OUTPUT_DIR" ${DATA_ROOT:+--data-root="$DATA_ROOT"}
        ${LISTS_DIR:+--lists-dir="$LISTS_DIR"})
    if [ "$MIXED_PRECISION" != 0 ]; then words+=(--mixed-precision); fi
    read -ra extra <<< "$EXTRA"
    call "${words[@]}" "${all_options[@]}" "${extra[@]}"
}

# train_labeled STAGE ARM SPLIT EPOCHS SEED VAL_NUM_STEPS: supervised training of an arm from its first weights.
train_labeled() {
    local first=() file=$coco_weights
    if [ -n "$(coco "$2")" ]; then
        if [ ! -f "$file" ] && [[ $file != /* ]]; then file=$root$file; fi  # not where the launcher was started
        first=(--coco --continue-from="$file")
    else  # all later stages know their network from the checkpoint
        if [ "$backbone" != resnet101 ]; then first=(--backbone="$backbone"); fi
        first+=(${output_stride:+--output-stride="$output_stride"} ${weights:+--weights="$weights"})
    fi
    stage --exp-name="$1" --state=2 --train-set="$3" --sets-id="$id" "${first[@]}" --epochs="$4" \
        --batch-size-labeled="$batch0" --lr="$lr0" --weight-decay="$weight_decay" --seed="$5" --val-num-steps="$6"
    report --progress
}

# round0 ARM SPLIT: round 0 of an arm, on the labelled images of SPLIT. Arms may have another seed in round 0.
round0() {
    local seed=seed_$1 seed0=seed0_$1
    train_labeled "$(name 0 "$1")" "$1" "$2" "$ep0" "${!seed0:-${!seed}}" "$val0"
}

# label ROUND ARM RATIO: the arm labels the unlabelled images with its checkpoint of the round before; from round 2 on
# with PLE, for which the checkpoint of yet a round earlier labels too. An empty beta leaves PLE out: plain DMT.
label() {
    local last=$(($1 - 1)) ple=()
    if [ $last -gt 0 ] && [ -n "$beta" ]; then
        ple=(--oldfilename="$(checkpoint $((last - 1)) "$2")" --Increment="$beta")
        if [ "$previous_statistics" != running ]; then ple+=(--previous-statistics="$previous_statistics"); fi
    fi
    stage --labeling --train-set="$split" --sets-id="$id" $(coco "$2") --continue-from="$(checkpoint $last "$2")" \
        "${ple[@]}" --label-ratio="$3" --batch-size-labeling="$batch_labeling" \
        --pseudo-dir="$(pseudo_dir $last "$2")" "${label_options[@]}"
}

# train ROUND ARM TEACHER: the arm goes on from its checkpoint of the round before, on labels of the teacher's.
train() {
    local last=$(($1 - 1)) seed=seed_$2
    stage --exp-name="$(name "$1" "$2")" --state=1 --train-set="$split" --sets-id="$id" $(coco "$2") \
        --continue-from="$(checkpoint $last "$2")" --pseudo-dir="$(pseudo_dir $last "$3")" \
        --epochs="$ep" --batch-size-labeled="$(of_round "$batch_labeled" "$1")" \
        --batch-size-pseudo="$(of_round "$batch_pseudo" "$1")" --lr="$lr" --weight-decay="$weight_decay" \
        --gamma1="$gamma1" --gamma2="$gamma2" --seed="${!seed}" --val-num-steps="$val" "${train_options[@]}"
    report --progress
}

# half ROUND TEACHER STUDENT RATIO: the student learns from the teacher's labels.
half() { label "$1" "$2" "$4"; train "$1" "$3" "$2"; }

# round0_of_both ARM SPLIT ARM SPLIT: round 0 of both arms, each on its labelled images.
round0_of_both() {
    begin "$(name 0 "$1")" round0 "$1" "$2"
    begin "$(name 0 "$3")" round0 "$3" "$4"
    finish "$(name 0 "$1")" "$(name 0 "$3")"
}

# teach_each_other ROUND ARM ARM RATIO: the first arm labels, the second learns from that; then the other way round.
# Both label with their checkpoints of the round before, so the order does not matter, and both halves may run at once.
teach_each_other() {
    begin "$(name "$1" "$3")" half "$1" "$2" "$3" "$4"
    begin "$(name "$1" "$2")" half "$1" "$3" "$2" "$4"
    finish "$(name "$1" "$3")" "$(name "$1" "$2")"
}

# test_arm ROUND ARM: validation of a finished stage, class by class.
test_arm() { stage --state=3 --continue-from="$(checkpoint "$1" "$2")"; }

# --- side by side -----------------------------------------------------------------------------------------------------

trap 'exit 143' TERM
trap 'echo "stopped: what is finished is kept, and the same command goes on from there" >&2; exit 130' INT
trap end_running EXIT

# end_running: whatever ends this shell ends what runs beside it. A training saves its state first, and says so.
end_running() {
    if [ ${#running[@]} = 0 ]; then return; fi
    kill -- "${running[@]/#/-}" 2> /dev/null || true
    wait
    how_far >&2
}

# begin JOB WORD ...: run the words; with ARMS_PARALLEL beside what follows, and their output goes to OUTPUT_DIR/logs.
begin() {
    if [ -n "$DRY_RUN" ] || [ -z "$ARMS_PARALLEL" ]; then "${@:2}"; return; fi
    mkdir -p "$OUTPUT_DIR/logs"
    set -m  # a process group of its own; its shell ends after the stage, which saves its state first
    (trap 'exit 143' TERM; use_gpus ${#running[@]}; "${@:2}") >> "$OUTPUT_DIR/logs/$1.txt" 2>&1 &
    set +m
    running[$1]=$!
}

# use_gpus PLACE: of the GPUs the NPROC that are due to the job in this place; where there are too few, jobs share them.
use_gpus() {
    local gpus groups
    gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null || true)}
    gpus=(${gpus//,/ })
    groups=$((${#gpus[@]} / NPROC))
    if [ $groups = 0 ]; then return; fi
    export CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:$(($1 % groups * NPROC)):$NPROC}")
}

# finish JOB ...: wait for what has begun, and print how it ended; on a terminal every few seconds how far all are, too.
finish() {
    local job log status=0 waited=0
    for job in "$@"; do
        if [ -z "${running[$job]:-}" ]; then continue; fi
        log=$OUTPUT_DIR/logs/$job.txt
        while [ -t 1 ] && kill -0 "${running[$job]}" 2> /dev/null; do
            sleep 1
            if ((++waited % 7 == 0)); then how_far; fi
        done
        wait "${running[$job]}" || status=$?
        unset "running[$job]"
        if [ $status != 0 ]; then
            echo "error: '$job' failed (status $status): $(sed -n 's/^error: //p' "$log" | tail -n 1); $log holds" \
                "everything it printed" >&2
            exit $status
        fi
        printf '%5d s  %s\n' $SECONDS "$(tail -n 1 "$log")"
    done
}

# how_far: which stage each job is in, and what it said last; at first that is its command.
how_far() {
    local job log line
    for job in "${!running[@]}"; do
        log=$OUTPUT_DIR/logs/$job.txt
        line=$(grep -vx 'interrupted\|Terminated' "$log" | tail -n 1 || true)
        if [[ $line == *main.py* ]]; then line="has printed nothing yet"; fi
        printf '%5d s  %s, %s: %s\n' $SECONDS "$job" "$(sed -n 's/^# //p' "$log" | tail -n 1)" "$line"
    done
}

# --- before, between and after the stages -----------------------------------------------------------------------------

# What has to be made before the first stage; a launcher may have more.
prepare() { :; }

# own_lists: the split lists are made for this run, unless LISTS_DIR says where they are: the data are only read.
own_lists() {
    LISTS_DIR=${LISTS_DIR:-$OUTPUT_DIR/lists}
    if [ "$LISTS_DIR" != "$OUTPUT_DIR/lists" ]; then return; fi
    prepare() {
        local data=(--dataset="$dataset" ${DATA_ROOT:+--data-root="$DATA_ROOT"})
        call "$PYTHON" "${root}generate_splits.py" "${data[@]}" --out="$LISTS_DIR"
        call "$PYTHON" "${root}dms_sample.py" "${data[@]}" --lists="$LISTS_DIR" --out="$LISTS_DIR"
    }
}

# start ARM ...: before the night, not after: main.py reads all commands that are to come, then nothing else works in
# the folder, then main.py looks at everything that the commands need.
start() {
    local plan line read_plan=("$PYTHON" "${root}main.py" --plan ${REDO:+--redo})
    arms=$*
    if [ "$backbone" != resnet101 ] && [ "$(for arm in $arms; do coco "$arm"; done | wc -w)" -eq $# ]; then
        fail "backbone=$backbone: all arms start from COCO weights, which are those of resnet101;" \
            "set coco_weights= (empty), too"
    fi
    if [ -n "$DRY_RUN" ]; then prepare; return; fi
    command -v "$PYTHON" > /dev/null || fail "PYTHON is '$PYTHON', which is no program; leave it out, or correct it"
    if [ "$NPROC" != 1 ] && ! "$PYTHON" -c "import sys, torch; sys.exit(torch.cuda.device_count() < $NPROC)"; then
        fail "NPROC is $NPROC, but this machine has fewer GPUs; give no more processes than there are"
    fi
    plan=$(DRY_RUN=plan bash "$0" | awk '/main\.py/')
    "${read_plan[@]}" <<< "$plan" > /dev/null
    if [ -z "$several_runs" ]; then lock_run; fi
    prepare
    if [ "$CHECK" != 0 ]; then read_plan+=(--check); fi
    "${read_plan[@]}" <<< "$plan"
    export PLANNED=1  # stages need not repeat what has been said
    while IFS= read -r line; do  # tests count as little as in the report
        if [[ $line != *--state=3* ]]; then : "${planned[$line]:=$((${#planned[@]} + 1))}"; fi
    done <<< "$plan"
    if [ "$REPORT" = 0 ] || [ -n "$several_runs" ]; then return; fi
    echo "report: $OUTPUT_DIR/report/index.html, brought up to date after every stage"
    if compgen -G "$OUTPUT_DIR/${exp}__*/config.json" > /dev/null; then report --progress; fi  # a stage has begun
}

# lock_run: one launcher at a time in a run folder. The stages inherit the lock, so it lasts as long as any of them, and
# the system frees it however they end.
lock_run() {
    if [ -n "$DRY_RUN" ] || ! command -v flock > /dev/null; then return; fi
    if ! mkdir -p -- "$OUTPUT_DIR" 2> /dev/null || ! [ -w "$OUTPUT_DIR" ]; then
        fail "the folder $OUTPUT_DIR cannot be written; set OUTPUT_DIR"
    fi
    exec 9>> "$OUTPUT_DIR/.lock"
    if flock -n 9; then return; fi
    if [ -z "$several_runs" ]; then
        fail "another launcher works in $OUTPUT_DIR; wait for it to end, or set another OUTPUT_DIR"
    fi
    echo "waiting for another launcher, which works in $OUTPUT_DIR"
    flock 9
}

# report [--progress]: the page of the run, with everything drawn anew, or only how far the chain is. A night's work
# does not stop for it, but for Ctrl-C.
report() {
    local words=("$PYTHON" "${root}tools/report.py" "$OUTPUT_DIR" --exp="$exp" --rounds="$(rounds)") status=0
    if [ "$REPORT" = 0 ] || [[ -n $DRY_RUN && $# != 0 ]]; then return; fi
    if compgen -G "${BASELINE:-none}/*/result.json" > /dev/null; then words+=(--baseline="$BASELINE"); fi
    words+=("$@" --arms $arms)
    if [ $# = 0 ]; then call "${words[@]}" || status=$?; else "${words[@]}" >&3 || status=$?; fi
    if [ $status -gt 128 ]; then exit $status; fi
    if [ $status != 0 ]; then echo "warning: the report was not written; the chain goes on" >&2; fi
}

# end_round ROUND: the report, and the disk freed of the predictions that no later stage needs: in round N those of the
# round before the last served PLE as the previous ones.
end_round() {
    local arm
    report
    if [ -n "$DRY_RUN$KEEP" ] || [ "$1" -lt 2 ]; then return; fi
    for arm in $arms; do rm -rf "$(pseudo_dir $(($1 - 2)) "$arm")/logits"; done
}

# print_results: the mIoU of every stage, and what can be done with those of the last round.
print_results() {
    if [ -n "$DRY_RUN" ]; then return; fi
    DRY_RUN=plan stage --state=3 --continue-from="$(checkpoint "$(rounds)" "${arms%% *}")" \
        --second-arm="$(checkpoint "$(rounds)" "${arms##* }")" |
        "$PYTHON" "${root}scripts/results.py" "$PYTHON" "$REPORT"
}

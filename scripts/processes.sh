#!/usr/bin/env bash
# Sourced by rounds.sh: stages of several processes, by torchrun, and stages side by side.

# on_processes WORD ...: sets words to the command that runs "python WORD ..." with NPROC processes on NNODES machines.
on_processes() {
    local options=(--nproc-per-node="$NPROC") port=${RDZV##*:}
    if [ "$NNODES" = 1 ]; then
        options+=(--standalone)
    else  # what meets at one port after or beside each other would meet what is left of the other
        options+=(--nnodes="$NNODES" --rdzv-backend=c10d --rdzv-endpoint="${RDZV%:*}:$((port + 8 * slot + stages % 8))"
            --rdzv-id="$exp-$slot-$stages" --rdzv-conf="read_timeout=$RDZV_TIMEOUT,join_timeout=$RDZV_TIMEOUT")
    fi
    stages=$((stages + 1))
    words=("$PYTHON" -m torch.distributed.run "${options[@]}" "$@")
}
stages=0  # so far

# call_processes WORD ...: call what on_processes has made. torchrun itself knows only the status 1; main.py leaves its
# own in STATUS_FILE.
call_processes() {
    local status=0 STATUS_FILE
    if [ -n "$DRY_RUN" ]; then call "$@"; return; fi
    STATUS_FILE=$(mktemp)
    export STATUS_FILE
    export LOGLEVEL=${LOGLEVEL:-ERROR}  # torchrun's warnings are about defaults that are meant
    call "$@" || status=$?
    if [ -s "$STATUS_FILE" ]; then status=$(cat "$STATUS_FILE"); fi
    rm -f "$STATUS_FILE"
    unset STATUS_FILE
    return "$status"
}

# check_processes: NPROC, NNODES and RDZV are what they have to be.
check_processes() {
    local name
    for name in NPROC NNODES; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "$name is '${!name}'; it must be a positive whole number"
    done
    if [ "$NNODES" = 1 ]; then return; fi
    [[ $RDZV =~ ^[^:]+:[0-9]+$ ]] ||
        fail "RDZV is '$RDZV'; of $NNODES machines all need the name of one and a port, as in RDZV=node1:29500"
}

# --- side by side ---------------------------------------------------------------------------------------------------

declare -A running=() slots=()  # name -> process group, name -> number
slot=0  # in what begin has started: which of those that run at the same time

# begin NAME WORD ...: run the words, with ARMS_PARALLEL in the background: what they print goes to OUTPUT_DIR/logs.
begin() {
    if [ -n "$DRY_RUN" ] || [ -z "$ARMS_PARALLEL" ]; then "${@:2}"; return; fi
    local logs=$OUTPUT_DIR/logs slot=0
    mkdir -p "$logs" || fail "the folder $logs cannot be made; set OUTPUT_DIR"
    while [[ " ${slots[*]} " == *" $slot "* ]]; do slot=$((slot + 1)); done
    guard_running
    set -m  # a process group of its own, to stop it as a whole
    (use_gpus; "${@:2}") >> "$logs/$1.txt" 2>&1 &
    set +m
    running[$1]=$! slots[$1]=$slot
    stages=$((stages + 1))
}

# use_gpus: what runs in this slot sees NPROC of the GPUs; where there are too few, slots share them.
use_gpus() {
    local gpus=() groups
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
    elif command -v nvidia-smi > /dev/null; then
        gpus=($(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null || true))
    fi
    groups=$((${#gpus[@]} / NPROC))
    if [ $groups = 0 ]; then return; fi
    gpus=("${gpus[@]:$((slot % groups * NPROC)):$NPROC}")
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]}")
    export CUDA_VISIBLE_DEVICES
    echo "# CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
}

# finish NAME ...: wait for what has begun and print how it ended; give up as soon as one has failed.
finish() {
    local name status ended waiting=" $* "
    if [ -n "$DRY_RUN" ] || [ -z "$ARMS_PARALLEL" ]; then return; fi
    while [ "$waiting" != " " ]; do
        ended=
        for name in $waiting; do
            if kill -0 "${running[$name]}" 2> /dev/null; then continue; fi
            status=0
            wait "${running[$name]}" || status=$?
            unset "running[$name]" "slots[$name]"
            waiting=${waiting/ $name / } ended=1
            if [ $status != 0 ]; then
                said "$OUTPUT_DIR/logs/$name.txt" >&2
                echo "error: '$name' failed (status $status); $OUTPUT_DIR/logs/$name.txt holds everything it printed" >&2
                exit $status
            fi
            printf '%5d s  %s\n' $SECONDS "$(tail -n 1 "$OUTPUT_DIR/logs/$name.txt")"
        done
        if [ -z "$ended" ]; then sleep 0.2; fi
    done
}

# said FILE: the error that a stage has printed last, which torchrun's report follows; or its last lines.
said() { tail -n 100 "$1" | grep '^error: ' | tail -n 1 || tail -n 3 "$1"; }

# guard_running: whatever ends this shell ends what it has started beside itself.
guard_running() {
    trap end_running EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
}

# Stop what runs beside, which saves its state, and wait for it: a restart finds the folder free.
end_running() {
    local group
    for group in "${running[@]}"; do kill -- "-$group" 2> /dev/null || true; done
    for group in "${running[@]}"; do
        while kill -0 -- "-$group" 2> /dev/null; do sleep 0.1; done
    done
}

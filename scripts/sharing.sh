#!/usr/bin/env bash
# Sourced after rounds.sh by launchers of several runs: what the runs have in common is computed once and linked.
#
# RUNS/ROW is the run folder of a row (a variant, a method) and whole in itself; OUTPUT_DIR is that of the current row.
RUNS=$OUTPUT_DIR
if [ "$NNODES" != 1 ]; then
    fail "NNODES is $NNODES: several machines share the stages of one run, but these are many; give each machine some of" \
        "them, with an OUTPUT_DIR of its own"
fi

planned=${planned:-}  # rows that a dry run has printed, and ROW:ARM for single arms

# link ROW FILE [LAST]: a file or folder of another row, without copying its content where the disk can. LAST is the file
# in the folder that is written last: where it is linked already, so is the rest.
link() {
    local from=$RUNS/$1/$2 to=$OUTPUT_DIR/$2
    if [ -n "$DRY_RUN" ]; then call cp -al "$from" "$to"; return; fi
    if [ "$from${3:+/$3}" -ef "$to${3:+/$3}" ]; then return; fi
    mkdir -p "$(dirname "$to")"
    rm -rf "${to:?}" "$to.linking"
    printf 'cp -al %q %q\n' "$from" "$to"
    cp -al "$from" "$to.linking" 2> /dev/null || cp -a "$from" "$to.linking"
    if [ -n "${3:-}" ]; then rm -f "$to.linking/.lock"; fi  # every row has its own
    mv "$to.linking" "$to"
}

# has ROW ROUND ARM: is that stage of another row finished (or printed by this dry run)?
has() {
    local stage
    stage=$RUNS/$1/$(name "$2" "$3")
    if [ "$RUNS/$1" = "$OUTPUT_DIR" ]; then return 1; fi
    if [[ " $planned " == *" $1 "* || " $planned " == *" $1:$3 "* ]]; then return; fi
    [ -f "$stage.pt" ] && [ -f "$stage/result.json" ]
}

# share ROW ROUND ARM: the finished stage and its line in log.txt.
share() {
    local stage line
    stage=$(name "$2" "$3")
    link "$1" "$stage.pt"
    link "$1" "$stage" result.json
    if [ -n "$DRY_RUN" ]; then return; fi
    line=$(grep -F "$stage: " "$RUNS/$1/log.txt" || true)
    if ! grep -qxF "$line" "$OUTPUT_DIR/log.txt" 2> /dev/null; then echo "$line" >> "$OUTPUT_DIR/log.txt"; fi
}

# labels_of ROW ROUND ARM ...: the pseudo labels of another row, unless they were removed after they had served.
labels_of() {
    local arm folder
    for arm in "${@:3}"; do
        folder=pseudo/$(name "$2" "$arm")
        if has "$1" "$(($2 + 1))" "$arm" && [ ! -f "$RUNS/$1/$folder/pruned" ]; then
            link "$1" "$folder" manifest.json
        fi
    done
}

# estimate UNIT: the cost of a fresh start, from what a dry run prints. In a dry run, that is printed after it.
estimate() {
    local commands folder=$RUNS
    if [ -n "${ESTIMATED:-}" ]; then return; fi
    if [ -z "$DRY_RUN" ]; then folder=$(mktemp -u); fi
    commands=$(ESTIMATED=1 DRY_RUN=1 OUTPUT_DIR=$folder bash "$0")
    awk -v images="$images" -v labeled="${labeled:-}" -v seconds="$SECONDS_PER_STEP" -v what="$1" \
        -f "${root}scripts/estimate.awk" <<< "$commands"
    if [ -n "$DRY_RUN" ]; then echo "$commands"; exit; fi
}

# keep_numbers WHAT NUMBERS: a folder holds the runs of one experiment, for what one of them shares must be what the others
# would have computed. The number of loader workers changes no result.
keep_numbers() {
    local file=$RUNS/.numbers numbers
    if [ -n "$DRY_RUN" ]; then return; fi
    numbers=$(sed -E 's/--workers[= ][0-9]+//' <<< "$2")
    mkdir -p "$RUNS" || fail "the folder $RUNS cannot be made; set OUTPUT_DIR to another one"
    if [ -f "$file" ] && [ "$(cat "$file")" != "$numbers" ]; then
        fail "$RUNS holds $1 with other numbers; remove it, or set OUTPUT_DIR to another folder"
    fi
    echo "$numbers" > "$file"
}

# one_by_one VARIABLE PREFIX VALUE ...: this launcher once for every value of the variable, JOBS of them at the same time,
# each into RUNS/PREFIX-VALUE and in a process group of its own; what they print goes to RUNS/PREFIX-VALUE.txt.
one_by_one() {
    local value
    if [ -n "$DRY_RUN" ]; then
        for value in "${@:3}"; do env ESTIMATED=1 "$1=$value" OUTPUT_DIR="$RUNS/$2-$value" bash "$0"; done
        return
    fi
    [[ $JOBS =~ ^[1-9][0-9]*$ ]] || fail "JOBS is '$JOBS'; it must be a positive whole number"
    mkdir -p "$RUNS" 2> /dev/null || fail "the folder $RUNS cannot be made; set OUTPUT_DIR"
    guard_running
    for value in "${@:3}"; do
        if [ ${#running[@]} -ge "$JOBS" ]; then wait_for_one; fi
        set -m
        env ESTIMATED=1 "$1=$value" OUTPUT_DIR="$RUNS/$2-$value" bash "$0" >> "$RUNS/$2-$value.txt" 2>&1 &
        set +m
        running[$2-$value]=$!
    done
    while [ ${#running[@]} -gt 0 ]; do wait_for_one; done
}

# wait_for_one: until one of those that run has ended; give up when it failed.
wait_for_one() {
    local name status=0
    while true; do
        for name in "${!running[@]}"; do
            if kill -0 "${running[$name]}" 2> /dev/null; then continue; fi
            wait "${running[$name]}" || status=$?
            unset "running[$name]"
            if [ $status != 0 ]; then
                tail -n 3 "$RUNS/$name.txt" >&2
                echo "error: '$name' failed (status $status); $RUNS/$name.txt holds everything it printed" >&2
                exit $status
            fi
            printf '%5d s  %s is done\n' $SECONDS "$name"
            return
        done
        sleep 1
    done
}

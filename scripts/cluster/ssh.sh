#!/usr/bin/env bash
# A launcher on several machines that ssh reaches without a password: every stage on all of them.
#     HOSTS="gpu1 gpu2" NPROC=4 scripts/cluster/ssh.sh ./dmt_ple-voc-20-1.sh
#     HOSTS="gpu1 gpu2" NPROC=4 scripts/cluster/ssh.sh split=8 ep0=54 ./dmt_ple-voc-20-1.sh
# The machines find the current directory under the same path, on a file system that they share; the numbers of the
# experiment come in front of the launcher. Ctrl-C stops all; the same command goes on.
set -euo pipefail

HOSTS=${HOSTS:-}  # names of the machines, as in "gpu1 gpu2"
NPROC=${NPROC:-1}  # GPUs of each
PORT=${PORT:-29500}  # the first of 16 free ports of the first machine

read -ra hosts <<< "$HOSTS"
if [ $# = 0 ] || [ ${#hosts[@]} -lt 2 ]; then
    echo "error: give two machines or more and a launcher, as in: HOSTS=\"gpu1 gpu2\" $0 ./dmt_ple-voc-20-1.sh" >&2
    exit 2
fi

# With -tt the launcher of a machine ends with the connection to it.
pids=()
trap 'kill "${pids[@]}" 2> /dev/null || true; wait' EXIT
for rank in "${!hosts[@]}"; do
    words=(env NNODES="${#hosts[@]}" NODE_RANK="$rank" NPROC="$NPROC" RDZV="${hosts[0]}:$PORT" "$@")
    command="cd $(printf '%q' "$PWD") && exec$(printf ' %q' "${words[@]}")"
    ssh -tt -o BatchMode=yes "${hosts[rank]}" "$command" < /dev/null > >(sed -u "s/^/${hosts[rank]}: /; s/\r$//") 2>&1 &
    pids+=($!)
done

while [ ${#pids[@]} -gt 0 ]; do
    wait -n -p ended "${pids[@]}" || exit $?  # the first to fail ends the others
    for rank in "${!pids[@]}"; do
        if [ "${pids[rank]}" = "$ended" ]; then unset "pids[rank]"; fi
    done
done

#!/usr/bin/env bash
# A launcher on several machines of a Slurm cluster: every stage on all GPUs of all of them.
#     sbatch scripts/cluster/slurm.sh ./dmt_ple-voc-20-1.sh
#     sbatch --nodes=4 --time=4:00:00 scripts/cluster/slurm.sh env split=8 ep0=54 ./dmt_ple-voc-20-1.sh
# To be submitted in the repository's root, on a file system that all machines share. At the time limit Slurm sends
# SIGTERM: the stage saves its state, and the same sbatch goes on there.
#SBATCH --job-name=dmt_ple
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.txt
set -euo pipefail

if [ $# = 0 ] || [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    echo "error: give a launcher to sbatch, as in: sbatch scripts/cluster/slurm.sh ./dmt_ple-voc-20-1.sh" >&2
    exit 2
fi
export NNODES=$SLURM_JOB_NUM_NODES
export NPROC=${NPROC:-${SLURM_GPUS_ON_NODE:-1}}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RDZV=${RDZV:-${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))}
exec srun --kill-on-bad-exit=1 "$@"

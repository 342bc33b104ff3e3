#!/usr/bin/env bash
# Any command of distillkit on one or more machines under Slurm, one process a GPU.
# sbatch --nodes=2 --gpus-per-node=8 scripts/slurm_train.sh train my_recipe.yaml output_dir=/shared/run
#
# Two minutes before its time is over (or when it is pre-empted) the run ends with a checkpoint and goes back into the
# queue, where it continues; so output_dir must be on a disk that all machines see. Ordinary failures are not repeated.
#SBATCH --job-name=distillkit
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}

srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$processes" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:${PORT:-29500}" \
    -m distillkit "$@" &
work=$!

preempted=false
trap 'preempted=true; kill -TERM "$work"' USR1 TERM
code=0
wait "$work" || code=$?
if $preempted; then
    wait "$work" || true # the first wait ended with the signal
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

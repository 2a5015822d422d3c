#!/bin/bash
#SBATCH --job-name=distil
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --requeue
# torchrun on each machine; --requeue starts the job anew when a machine fails,
# and the training goes on from its last backup. The teacher has to be there:
#   KERAS_BACKEND=torch python train.py teacher --folder "$PWD/runs/distributed"
set -euo pipefail
export KERAS_BACKEND=torch
# Newer versions of srun don't take it from the job.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-4}" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$FIRST:29500" \
  train.py student --folder "$PWD/runs/distributed"

#!/bin/bash
#SBATCH --job-name=distil
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --requeue
# One process for each machine, which uses all of its devices. --requeue starts
# the job anew when a machine fails, and the training goes on from its backup.
# The teacher has to be there:
#   KERAS_BACKEND=jax python train.py teacher --folder "$PWD/runs/distributed"
set -euo pipefail
export KERAS_BACKEND=jax
# Newer versions of srun don't take it from the job.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# Under Slurm, JAX takes one GPU for each process unless it is told which.
export JAX_LOCAL_DEVICE_IDS=0,1,2,3
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export KERAS_DISTRIBUTION_JOB_ADDRESSES="$FIRST:29500"
export KERAS_DISTRIBUTION_NUM_PROCESSES="$SLURM_NTASKS"

srun bash -c 'KERAS_DISTRIBUTION_PROCESS_ID=$SLURM_PROCID \
  python train.py student --folder "$PWD/runs/distributed"'

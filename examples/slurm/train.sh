#!/bin/bash
#SBATCH --job-name=train
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --gpus=4
#SBATCH --cpus-per-task=20
#SBATCH --mem=64000
#SBATCH --time=720
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A training on the GPUs of one node. Ahead of the time limit it saves and puts itself back into the queue; cancelled,
# it goes on when the same line is given again.
#   sbatch examples/slurm/train.sh --pretrained results/pretrained/msclap-2023 --pairs results/pairs/RUN/seed0.parquet \
#       --shards results/shards --seed 0 --workers 4 --out results/runs/RUN/seed0 ...
# PROCESSES=2 sbatch --gpus=2 ... for another number of GPUs.
# Unbuffered, or srun holds progress back that ends no line.
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH
srun --unbuffered --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    python -m pipeline.training.launch --processes "${PROCESSES:-4}" -m pipeline.stages.train "$@"

#!/bin/bash
#SBATCH --job-name=embed
#SBATCH --partition=gpu
#SBATCH --gpus=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16000
#SBATCH --time=60
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# Embeddings of a test split by a run's model, on one GPU.
#   sbatch examples/slurm/embed.sh --model results/runs/RUN/seed0 --shards results/shards/clotho/evaluation \
#       --embeddings results/evaluations/RUN/seed0/clotho/embeddings.npz
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH
srun python -m pipeline.stages.embed "$@"

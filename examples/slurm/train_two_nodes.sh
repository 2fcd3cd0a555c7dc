#!/bin/bash
#SBATCH --job-name=train
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=20
#SBATCH --mem=64000
#SBATCH --time=720
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A training on two nodes with four GPUs each; the launcher calls srun itself. The options are those of train.sh.
#   sbatch examples/slurm/train_two_nodes.sh --pretrained ... --out results/runs/RUN/seed0 ...
# PROCESSES=4 sbatch --gpus-per-node=2 ... for another number of GPUs: PROCESSES counts those of both nodes.
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH
exec python -m pipeline.training.launch --nodes 2 --processes "${PROCESSES:-8}" -m pipeline.stages.train "$@"

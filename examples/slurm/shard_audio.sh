#!/bin/bash
#SBATCH --job-name=shard_audio
#SBATCH --partition=cpu
#SBATCH --cpus-per-task=1
#SBATCH --mem=1000
#SBATCH --time=720
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.log
# All shards of a split by hand, shared out among the tasks of an array; any number of tasks makes the same tars.
#   sbatch --array=0-3 examples/slurm/shard_audio.sh results/catalogs/clotho/development results/shards/clotho/development
# The options are those of experiments/paper.yaml; add others, or the same with other values, at the end of the line.
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH
catalog=$1 folder=$2 part=$SLURM_ARRAY_TASK_ID-of-$SLURM_ARRAY_TASK_COUNT
srun python -m pipeline.stages.shard_audio --catalog "$catalog.parquet" --plan "$catalog.shards.parquet" --part "$part" \
    --sample-rate-hz 44100 --format wav --channels mean --min-duration-s 0.5 \
    --shards "$folder" --done "$folder/parts/$part.json" "${@:3}"

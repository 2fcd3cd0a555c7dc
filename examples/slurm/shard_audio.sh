#!/bin/bash
#SBATCH --job-name=shard_audio
#SBATCH --partition=cpu
#SBATCH --cpus-per-task=1
#SBATCH --mem=1000
#SBATCH --time=30
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.log
# Every shard of a split by hand, a task of an array each; as many as this prints, here 4:
#   python -c 'from pathlib import Path; from pipeline.data.shards.partition import read_assignment
#   print(len(read_assignment(Path("results/catalogs/clotho/development.parquet"), 1000)))'
#   sbatch --array=0-3 examples/slurm/shard_audio.sh results/catalogs/clotho/development.parquet \
#       results/shards/clotho/development
# The options are those of experiments/paper.yaml; add others, or the same with other values, at the end of the line.
# CLIPS_PER_SHARD=500 sbatch ... for smaller shards.
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH
catalog=$1 folder=$2 clips=${CLIPS_PER_SHARD:-1000}
shard=$(python -c 'import sys; from pathlib import Path; from pipeline.data.shards.partition import read_assignment
print(read_assignment(Path(sys.argv[1]), int(sys.argv[2]))[int(sys.argv[3])].shard)' \
    "$catalog" "$clips" "$SLURM_ARRAY_TASK_ID")
srun python -m pipeline.stages.shard_audio --catalog "$catalog" --shard "$shard" --clips-per-shard "$clips" \
    --sample-rate-hz 44100 --format wav --channels mean --min-duration-s 0.5 \
    --tar "$folder/$shard.tar" --rows "$folder/$shard.parquet" "${@:3}"

#!/bin/bash
#SBATCH --partition=cpu
#SBATCH --cpus-per-task=1
#SBATCH --mem=4000
#SBATCH --time=60
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# Any stage on a CPU by hand: index_audio, index_shards, pair_clips, evaluate, tabulate.
#   sbatch --job-name=evaluate examples/slurm/cpu_stage.sh evaluate --embeddings ... --metrics ... --ranks ... \
#       --contributions ...
# The options are those of `python -m pipeline.stages.STAGE --help`; `snakemake -n -p FILE` prints them filled in.
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH
srun python -m "pipeline.stages.$1" "${@:2}"

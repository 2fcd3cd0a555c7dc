rule shard_audio:
    """Resample one shard's clips to mono at the backbone's rate and write them as a WebDataset tar."""
    input:
        catalog="results/catalogs/{dataset}/{split}.parquet",
        code=code_of("shard_audio"),
    output:
        tar="results/shards/{dataset}/{split}/{shard}.tar",
        rows="results/shards/{dataset}/{split}/{shard}.parquet",
    log:
        "logs/shard_audio/{dataset}/{split}/{shard}.log",
    benchmark:
        "benchmarks/shard_audio/{dataset}/{split}/{shard}.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        clips_per_shard=config["shards"]["clips_per_shard"],
        sample_rate_hz=BACKBONES[config["backbone"]["name"]].sample_rate_hz,
        format=config["shards"]["format"],
        min_duration_s=config["shards"]["min_duration_s"],
    shell:
        "python -m pipeline.stages.shard_audio --catalog {input.catalog:q} --shard {wildcards.shard}"
        " --clips-per-shard {params.clips_per_shard} --sample-rate-hz {params.sample_rate_hz}"
        " --format {params.format} --min-duration-s {params.min_duration_s}"
        " --tar {output.tar:q} --rows {output.rows:q} 2> {log:q}"


rule index_shards:
    """Join the row files of a split to its manifest, and account for every source row."""
    input:
        rows=shard_rows,
        code=code_of("index_shards"),
    output:
        manifest="results/shards/{dataset}/{split}/manifest.parquet",
        summary="results/shards/{dataset}/{split}/manifest.json",
    log:
        "logs/index_shards/{dataset}/{split}.log",
    params:
        max_dropped_fraction=dropped_fraction,
    shell:
        "python -m pipeline.stages.index_shards --rows {input.rows:q} --manifest {output.manifest:q}"
        " --summary {output.summary:q} --max-dropped-fraction {params.max_dropped_fraction} 2> {log:q}"

rule shard_audio:
    """Resample one shard's clips to mono at the backbone's rate and write them as a WebDataset tar."""
    input:
        # Only the shard's own rows matter, which the digest below stands for: new clips leave the other shards alone.
        catalog=ancient("results/catalogs/{dataset}/{split}.parquet"),
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
        channels=config["shards"]["channels"],
        min_duration_s=config["shards"]["min_duration_s"],
        clips=shard_clips,
        digest=shard_digest,
    shell:
        "python -m pipeline.stages.shard_audio --catalog {input.catalog:q} --shard {wildcards.shard}"
        " --clips-per-shard {params.clips_per_shard} --clips {params.clips} --digest {params.digest}"
        " --sample-rate-hz {params.sample_rate_hz}"
        " --format {params.format} --channels {params.channels} --min-duration-s {params.min_duration_s}"
        " --tar {output.tar:q} --rows {output.rows:q} 2> {log:q}"


rule stage_shards:
    """Copy a published split's shards, each checked against its checksum, or take note of where they can be read."""
    input:
        code=code_of("stage_shards"),
    output:
        manifest="results/shards/{dataset}/{split}/manifest.parquet",
        summary="results/shards/{dataset}/{split}/manifest.json",
    log:
        "logs/stage_shards/{dataset}/{split}.log",
    wildcard_constraints:
        dataset=ready_datasets(),
    params:
        address=shards_address,
        tars=tars_place,
    shell:
        "python -m pipeline.stages.stage_shards --address {params.address:q} --tars {params.tars}"
        " --manifest {output.manifest:q} --summary {output.summary:q} 2> {log:q}"


rule index_shards:
    """Join the row files of a split to its manifest, and account for every source row."""
    input:
        catalog="results/catalogs/{dataset}/{split}.parquet",
        rows=shard_rows,
        code=code_of("index_shards"),
    output:
        manifest="results/shards/{dataset}/{split}/manifest.parquet",
        summary="results/shards/{dataset}/{split}/manifest.json",
    log:
        "logs/index_shards/{dataset}/{split}.log",
    wildcard_constraints:
        dataset=raw_datasets(),
    params:
        clips_per_shard=config["shards"]["clips_per_shard"],
        shards=subpath(output.manifest, parent=True),
        max_dropped_fraction=dropped_fraction,
    shell:
        "python -m pipeline.stages.index_shards --catalog {input.catalog:q} --clips-per-shard {params.clips_per_shard}"
        " --shards {params.shards:q} --manifest {output.manifest:q} --summary {output.summary:q} --max-dropped-fraction {params.max_dropped_fraction} 2> {log:q}"

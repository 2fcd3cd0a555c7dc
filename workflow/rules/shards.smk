"""WebDataset tars and manifests.

shard_audio   a catalog and its plan -> results/shards/{dataset}/{split}/*.tar and parts/{part}.json
index_shards  all parts of a split   -> results/shards/{dataset}/{split}/manifest.parquet, manifest.json
stage_shards  ready shards elsewhere -> the same
"""


rule shard_audio:
    """Resample one part of a split's clips to mono at the backbone's rate and write them as WebDataset tars.

    The tars are no outputs, so that a job that was killed continues with those it had finished.
    """
    input:
        catalog="results/catalogs/{dataset}/{split}.parquet",
        plan="results/catalogs/{dataset}/{split}.shards.parquet",
    output:
        part="results/shards/{dataset}/{split}/parts/{part}.json",
    log:
        "logs/shard_audio/{dataset}/{split}/{part}.log",
    benchmark:
        "benchmarks/shard_audio/{dataset}/{split}/{part}.tsv"
    wildcard_constraints:
        dataset=one_of(study.raw_datasets()),
    threads: 1
    resources:
        mem_mb=1000,
        runtime=240,
    params:
        version=VERSIONS["shard_audio"],
        repairs=ask(study.repairs),
        folder=subpath(output.part, ancestor=2),
        sample_rate_hz=study.backbone.sample_rate_hz,
        format=study.config.shards.format,
        channels=study.config.shards.channels,
        min_duration_s=study.config.shards.min_duration_s,
        min_level=ask(study.level_flag),
    shell:
        "python -m pipeline.stages.shard_audio"
        " --catalog={input.catalog:q}"
        " --plan={input.plan:q}"
        " --part={wildcards.part}"
        " --sample-rate-hz={params.sample_rate_hz}"
        " --format={params.format}"
        " --channels={params.channels}"
        " --min-duration-s={params.min_duration_s}"
        " {params.min_level:q}"
        " --shards={params.folder:q}"
        " --done={output.part:q}"
        " 2> {log:q}"


rule index_shards:
    """Join the row files of a split to its manifest, and account for every source row."""
    input:
        plan="results/catalogs/{dataset}/{split}.shards.parquet",
        parts=expand(
            "results/shards/{dataset}/{split}/parts/{part}.json",
            part=study.shard_parts(),
            allow_missing=True,
        ),
    output:
        manifest="results/shards/{dataset}/{split}/manifest.parquet",
        summary="results/shards/{dataset}/{split}/manifest.json",
        identities="results/shards/{dataset}/{split}/identities.parquet",
    log:
        "logs/index_shards/{dataset}/{split}.log",
    wildcard_constraints:
        dataset=one_of(study.raw_datasets()),
    params:
        version=VERSIONS["index_shards"],
        folder=subpath(output.manifest, parent=True),
        max_dropped_fraction=ask(study.max_dropped_fraction),
    shell:
        "python -m pipeline.stages.index_shards"
        " --plan={input.plan:q}"
        " --shards={params.folder:q}"
        " --max-dropped-fraction={params.max_dropped_fraction}"
        " --manifest={output.manifest:q}"
        " --summary={output.summary:q}"
        " --identities={output.identities:q}"
        " 2> {log:q}"


rule stage_shards:
    """Copy a published split's shards, each checked against its checksum, or record where they can be read."""
    output:
        manifest="results/shards/{dataset}/{split}/manifest.parquet",
        summary="results/shards/{dataset}/{split}/manifest.json",
        identities="results/shards/{dataset}/{split}/identities.parquet",
    log:
        "logs/stage_shards/{dataset}/{split}.log",
    wildcard_constraints:
        dataset=one_of(study.ready_datasets()),
    params:
        version=VERSIONS["stage_shards"],
        address=ask(study.shards_address),
        tars=ask(study.tars),
    shell:
        "python -m pipeline.stages.stage_shards"
        " --address={params.address:q}"
        " --tars={params.tars}"
        " --manifest={output.manifest:q}"
        " --summary={output.summary:q}"
        " --identities={output.identities:q}"
        " 2> {log:q}"

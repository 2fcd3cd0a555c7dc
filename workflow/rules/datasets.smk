"""Raw datasets and catalogs.

mix_soundscapes  data/recordings                            -> results/raw/{dataset}/
index_audio      a raw tree (results/raw/{dataset}/, yours) -> results/catalogs/{dataset}/{split}.parquet, .shards.parquet
"""


rule mix_soundscapes:
    """Mix a raw dataset of the small study from the recordings that ship with the project."""
    input:
        recordings="data/recordings/recordings.csv",
    output:
        root=directory("results/raw/{dataset}"),
    log:
        "logs/mix_soundscapes/{dataset}.log",
    benchmark:
        "benchmarks/mix_soundscapes/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(study.generated_datasets()),
    params:
        version=VERSIONS["mix_soundscapes"],
        recordings=subpath(input.recordings, parent=True),
        # Not an input: Snakemake would print the 86 paths with every job.
        audio=[f"{path.name} {path.stat().st_size}" for path in sorted(Path("data/recordings/audio").glob("*.ogg"))],
        seed=study.config.soundscapes.seed,
        scale=study.config.soundscapes.scale,
    shell:
        "python -m pipeline.stages.mix_soundscapes"
        " --recordings={params.recordings:q}"
        " --dataset={wildcards.dataset}"
        " --seed={params.seed}"
        " --scale={params.scale}"
        " --out={output.root:q}"
        " 2> {log:q}"


rule index_audio:
    """List every clip of a split with its captions, or the reason why it is unusable, and share them out among tars."""
    input:
        # A raw tree that the study does not make is known by `listing`: times of folders change without their content.
        generated=ask(study.generated_root),
    output:
        catalog="results/catalogs/{dataset}/{split}.parquet",
        plan="results/catalogs/{dataset}/{split}.shards.parquet",
    log:
        "logs/index_audio/{dataset}/{split}.log",
    wildcard_constraints:
        dataset=one_of(study.raw_datasets()),
    params:
        version=VERSIONS["index_audio"],
        root=ask(study.root),
        listing=ask(study.listing),
        adapter=ask(study.adapter),
        captions=ask(study.caption_flag),
        segments=ask(study.segment_flags),
        max_dropped_fraction=ask(study.max_dropped_fraction),
        clips_per_shard=study.config.shards.clips_per_shard,
    shell:
        "python -m pipeline.stages.index_audio"
        " --dataset={wildcards.dataset}"
        " --split={wildcards.split}"
        " --adapter={params.adapter}"
        " --root={params.root:q}"
        " {params.captions}"
        " {params.segments:q}"
        " --max-dropped-fraction={params.max_dropped_fraction}"
        " --clips-per-shard={params.clips_per_shard}"
        " --catalog={output.catalog:q}"
        " --plan={output.plan:q}"
        " 2> {log:q}"

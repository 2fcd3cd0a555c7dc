rule mix_soundscapes:
    """Mix the small study's raw datasets from the recordings that ship with the project."""
    input:
        recordings="data/recordings/recordings.csv",
        audio=recordings_audio,
        code=code_of("mix_soundscapes"),
    output:
        root=directory("results/raw/{dataset}"),
    log:
        "logs/mix_soundscapes/{dataset}.log",
    benchmark:
        "benchmarks/mix_soundscapes/{dataset}.tsv"
    params:
        recordings=subpath(input.recordings, parent=True),
        seed=config["soundscapes"]["seed"],
        scale=config["soundscapes"]["scale"],
    shell:
        "python -m pipeline.stages.mix_soundscapes --recordings {params.recordings:q} --dataset {wildcards.dataset}"
        " --seed {params.seed} --scale {params.scale} --out {output.root:q} 2> {log:q}"


checkpoint index_audio:
    """List every clip of a split with its captions and source, or the reason why it cannot be used."""
    input:
        root=dataset_root,
        listing=dataset_listing,
        code=code_of("index_audio"),
    output:
        catalog="results/catalogs/{dataset}/{split}.parquet",
    log:
        "logs/index_audio/{dataset}/{split}.log",
    params:
        adapter=dataset_adapter,
        captions=caption_flag,
        max_dropped_fraction=dropped_fraction,
    shell:
        "python -m pipeline.stages.index_audio --dataset {wildcards.dataset} --split {wildcards.split}"
        " --adapter {params.adapter} --root {input.root:q} {params.captions}"
        " --max-dropped-fraction {params.max_dropped_fraction} --catalog {output.catalog:q} 2> {log:q}"

"""The unlabeled audio, described.

embed_split    the pretrained model and a split -> results/embeddings/{dataset}/{split}/embeddings.parquet
describe_pool  embeddings of a target's splits  -> results/pools/{target}/{role}/
"""


rule embed_split:
    """Embed the audio of a split with the pretrained model."""
    input:
        model=study.pretrained(),
        split="results/shards/{dataset}/{split}/manifest.json",
    output:
        embeddings="results/embeddings/{dataset}/{split}/embeddings.parquet",
    log:
        "logs/embed_split/{dataset}/{split}.log",
    benchmark:
        "benchmarks/embed_split/{dataset}/{split}.tsv"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=240,
    params:
        version=VERSIONS["embed_split"],
        model=subpath(input.model, parent=True),
        shards=subpath(input.split, parent=True),
        windows=study.config.evaluation.windows,
        device=device,
    shell:
        "python -m pipeline.stages.embed_split"
        " --model={params.model:q}"
        " --shards={params.shards:q}"
        " --windows={params.windows}"
        " --threads={threads}"
        " --device={params.device}"
        " --embeddings={output.embeddings:q}"
        " 2> {log:q}"


rule describe_pool:
    """Compare a target's unlabeled clips with its labeled and held-out clips, and lay them out as a map."""
    input:
        embeddings=ask(study.pool_embeddings),
        identities=study.held_out("identities.parquet"),
        near_duplicates=ask(study.pool_near_duplicates),
    output:
        summary="results/pools/{target}/{role}/summary.json",
        held_out="results/pools/{target}/{role}/held_out.parquet",
        unlabeled="results/pools/{target}/{role}/unlabeled.parquet",
        map="results/pools/{target}/{role}/map.parquet",
    log:
        "logs/describe_pool/{target}/{role}.log",
    benchmark:
        "benchmarks/describe_pool/{target}/{role}.tsv"
    wildcard_constraints:
        role="validation|test",
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        version=VERSIONS["describe_pool"],
        folder=subpath(output.summary, parent=True),
        held_out=lambda wildcards: study.split(wildcards.target, wildcards.role),
        labeled=ask(study.pool_splits, use="labeled"),
        unlabeled=ask(study.pool_splits, use="unlabeled"),
    shell:
        "python -m pipeline.stages.describe_pool"
        " --target={wildcards.target}"
        " --role={wildcards.role}"
        " --held-out={params.held_out}"
        " --labeled {params.labeled}"
        " --unlabeled {params.unlabeled}"
        " --shards=results/shards"
        " --embeddings=results/embeddings"
        " --identities {input.identities:q}"
        " --near-duplicates {input.near_duplicates:q}"
        " --out={params.folder:q}"
        " 2> {log:q}"

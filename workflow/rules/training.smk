"""Models.

pretrain        results/pairs/pretrain/seed{seed}.parquet -> results/pretrained/mini/
import_weights  published weights                         -> results/pretrained/{backbone}/
train           pretrained weights, pairs, teachers       -> results/runs/{run}/seed{seed}/
average_weights pretrained and trained weights            -> results/averaged/{run}/seed{seed}/

`train` and `pretrain` keep the outputs that they made from the same inputs before, in a hidden folder next to them.
"""


rule pretrain:
    """Train the backbone `mini` on general captioned audio."""
    input:
        pairs=f"results/pairs/pretrain/seed{study.config.pretrain.seed}.parquet",
    output:
        model="results/pretrained/mini/model.safetensors",
        description="results/pretrained/mini/model.json",
        tokenizer="results/pretrained/mini/tokenizer.json",
        log="results/pretrained/mini/training.parquet",
        curves=report(
            "results/pretrained/mini/learning_curves.svg",
            caption="../report/pretraining.rst",
            category="Learning curves",
            labels={"run": "pretrain", "seed": str(study.config.pretrain.seed)},
        ),
        account="results/pretrained/mini/training.json",
    log:
        "logs/pretrain/mini.log",
    benchmark:
        "benchmarks/pretrain/mini.tsv"
    # Fixed, because the number of threads decides the order of sums and so the last bits of the weights.
    threads: 2
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        version=VERSIONS["pretrain"],
        folder=subpath(output.model, parent=True),
        seed=study.config.pretrain.seed,
        vocabulary_size=study.config.pretrain.vocabulary_size,
        settings=as_is(study.training_flags("pretrain", seed=str(study.config.pretrain.seed))),
        device=device,
    shell:
        "python -m pipeline.stages.pretrain"
        " --pairs={input.pairs:q}"
        " --shards=results/shards"
        " --vocabulary-size={params.vocabulary_size}"
        " --seed={params.seed}"
        " --threads={threads}"
        " --device={params.device}"
        " {params.settings:q}"
        " --out={params.folder:q}"
        " 2> {log:q}"


rule import_weights:
    """Convert published weights to the form that every other stage reads."""
    input:
        files=study.weights_files(),
    output:
        model="results/pretrained/{backbone}/model.safetensors",
        description="results/pretrained/{backbone}/model.json",
        tokenizer="results/pretrained/{backbone}/tokenizer.json",
    log:
        "logs/import_weights/{backbone}.log",
    wildcard_constraints:
        backbone=one_of(PUBLISHED),
    resources:
        mem_mb=6000,
        runtime=30,
    params:
        version=VERSIONS["import_weights"],
        folder=subpath(output.model, parent=True),
        sources=as_is(study.weights_flags()),
    shell:
        "python -m pipeline.stages.import_weights"
        " --backbone={wildcards.backbone}"
        " {params.sources:q}"
        " --out={params.folder:q}"
        " 2> {log:q}"


rule train:
    """Train a run, one process per GPU; a training that was killed continues from its checkpoint."""
    input:
        pretrained=study.pretrained(),
        pairs="results/pairs/{run}/seed{seed}.parquet",
        teachers=ask(study.teachers),
        validation=ask(study.validated_while_trained),
    output:
        model="results/runs/{run}/seed{seed}/model.safetensors",
        description="results/runs/{run}/seed{seed}/model.json",
        tokenizer="results/runs/{run}/seed{seed}/tokenizer.json",
        log="results/runs/{run}/seed{seed}/training.parquet",
        curves=report(
            "results/runs/{run}/seed{seed}/learning_curves.svg",
            caption="../report/learning_curves.rst",
            category="Learning curves",
            labels={"run": "{run}", "seed": "{seed}"},
        ),
        account="results/runs/{run}/seed{seed}/training.json",
    log:
        "logs/train/{run}/seed{seed}.log",
    benchmark:
        "benchmarks/train/{run}/seed{seed}.tsv"
    # On a CPU two trainings of one thread end sooner than one after the other with two.
    threads: 1
    resources:
        gpu=0,  # all nodes together
        nodes=1,
        loader_workers=0,
        micro_batch=0,
        compile=0,
        verify_shards=1,
        mem_mb=4000,
        runtime=240,
    params:
        version=VERSIONS["train"],
        pretrained=subpath(input.pretrained, parent=True),
        folder=subpath(output.model, parent=True),
        settings=ask(study.training_flags),
        processes=process_count,
        device=device,
        seed=lambda wildcards: wildcards.seed,
        outcome=[],
    shell:
        "python -m pipeline.training.launch"
        " --nodes {resources.nodes}"
        " --processes {params.processes}"
        " -m pipeline.stages.train"
        " --pretrained={params.pretrained:q}"
        " --pairs={input.pairs:q}"
        " --shards=results/shards"
        " --seed={params.seed}"
        " --threads={threads}"
        " --workers={resources.loader_workers}"
        " --micro-batch={resources.micro_batch}"
        " --compile={resources.compile}"
        " --verify-shards={resources.verify_shards}"
        " --device={params.device}"
        " {params.settings:q}"
        " {params.outcome:q}"
        " --out={params.folder:q}"
        " 2> {log:q}"


rule average_weights:
    """Average a run's weights with the pretrained ones, in the proportion with the best validation figures."""
    input:
        pretrained=study.pretrained(),
        trained="results/runs/{run}/seed{seed}/model.safetensors",
        log="results/runs/{run}/seed{seed}/training.parquet",
        curves="results/runs/{run}/seed{seed}/learning_curves.svg",
        account="results/runs/{run}/seed{seed}/training.json",
        validation=ask(study.validation_summaries),
    output:
        model="results/averaged/{run}/seed{seed}/model.safetensors",
        description="results/averaged/{run}/seed{seed}/model.json",
        tokenizer="results/averaged/{run}/seed{seed}/tokenizer.json",
        log="results/averaged/{run}/seed{seed}/training.parquet",
        curves="results/averaged/{run}/seed{seed}/learning_curves.svg",
        account="results/averaged/{run}/seed{seed}/training.json",
        figures="results/averaged/{run}/seed{seed}/validation.csv",
    log:
        "logs/average_weights/{run}/seed{seed}.log",
    benchmark:
        "benchmarks/average_weights/{run}/seed{seed}.tsv"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=60,
    params:
        version=VERSIONS["average_weights"],
        pretrained=subpath(input.pretrained, parent=True),
        trained=subpath(input.trained, parent=True),
        validation=ask(study.validation_flags),
        windows=study.config.evaluation.windows,
        folder=subpath(output.model, parent=True),
        device=device,
    shell:
        "python -m pipeline.stages.average_weights"
        " --pretrained={params.pretrained:q}"
        " --trained={params.trained:q}"
        " {params.validation:q}"
        " --windows={params.windows}"
        " --threads={threads}"
        " --device={params.device}"
        " --out={params.folder:q}"
        " 2> {log:q}"

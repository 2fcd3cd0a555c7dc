"""The learning rate of every run, found on the validation splits: `snakemake --cores all results/sweep.csv`."""


use rule train as train_candidate with:
    input:
        pretrained=pretrained_model,
        pairs=f"results/pairs/{{run}}/seed{config['sweep']['seed']}.parquet",
        code=code_of("train"),
    output:
        model="results/sweep/{learning_rate}/{run}/model.safetensors",
        description="results/sweep/{learning_rate}/{run}/model.json",
        tokenizer="results/sweep/{learning_rate}/{run}/tokenizer.json",
        log="results/sweep/{learning_rate}/{run}/training.parquet",
        curves="results/sweep/{learning_rate}/{run}/learning_curves.svg",
        account="results/sweep/{learning_rate}/{run}/training.json",
        outcome="results/sweep/{learning_rate}/{run}/outcome.txt",
    log:
        "logs/train_candidate/{learning_rate}/{run}.log",
    benchmark:
        "benchmarks/train_candidate/{learning_rate}/{run}.tsv"
    params:
        pretrained=subpath(input.pretrained, parent=True),
        folder=subpath(output.model, parent=True),
        settings=candidate_flags,
        processes=process_count,
        device=device,
        seed=config["sweep"]["seed"],


use rule embed as embed_candidate with:
    input:
        model="results/sweep/{learning_rate}/{run}/model.safetensors",
        split=split_summary("validation"),
        code=code_of("embed"),
    output:
        embeddings="results/sweep/{learning_rate}/{run}/{target}/embeddings.npz",
    log:
        "logs/embed_candidate/{learning_rate}/{run}/{target}.log",
    benchmark:
        "benchmarks/embed_candidate/{learning_rate}/{run}/{target}.tsv"


use rule evaluate as evaluate_candidate with:
    input:
        embeddings="results/sweep/{learning_rate}/{run}/{target}/embeddings.npz",
        code=code_of("evaluate"),
    output:
        metrics="results/sweep/{learning_rate}/{run}/{target}/metrics.json",
        ranks="results/sweep/{learning_rate}/{run}/{target}/ranks.parquet",
        contributions="results/sweep/{learning_rate}/{run}/{target}/contributions.parquet",
    log:
        "logs/evaluate_candidate/{learning_rate}/{run}/{target}.log",
    params:
        split=target_split("validation"),
        expected=[],
        seed=config["sweep"]["seed"],


checkpoint list_diverged:
    """List the candidates that diverged: they are not evaluated, and none of them can be chosen."""
    input:
        outcomes=sweep_outcomes,
    output:
        diverged="results/sweep/diverged.txt",
    log:
        "logs/list_diverged/sweep.log",
    shell:
        "(grep -Lx finished {input.outcomes:q} || true) > {output.diverged:q} 2> {log:q}"


rule choose_learning_rates:
    """Choose every run's learning rate: the highest validation mAP@10, averaged over directions and targets."""
    input:
        metrics=sweep_metrics,
        diverged=sweep_diverged,
        code=code_of("choose_learning_rates"),
    output:
        csv="results/sweep.csv",
    log:
        "logs/choose_learning_rates/sweep.log",
    params:
        protocol=config["evaluation"]["protocol"],
    shell:
        "python -m pipeline.stages.choose_learning_rates --metrics {input.metrics:q} --diverged {input.diverged:q}"
        " --protocol {params.protocol} --csv {output.csv:q} 2> {log:q}"

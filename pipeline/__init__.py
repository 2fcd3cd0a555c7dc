"""Audio-text contrastive learning from few captioned clips and much unlabeled audio, as a pipeline of batch jobs."""

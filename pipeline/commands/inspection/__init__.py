"""Looking at what the stages made: `python -m pipeline inspect`, `verify` and `listen`. Nothing here imports torch."""

"""Reading, checks and output of `composed-text inspect`, `verify` and `listen`. Nothing here imports torch."""

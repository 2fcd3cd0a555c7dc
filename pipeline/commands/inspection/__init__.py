"""What `composed-text inspect`, `verify` and `listen` read, check and show. Nothing here imports torch."""

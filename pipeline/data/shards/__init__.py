"""WebDataset shards of a split: their format, writer, reader, streaming, and which clips are in which tar."""

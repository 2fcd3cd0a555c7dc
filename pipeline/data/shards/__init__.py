"""WebDataset shards of a split: their format, writer, reader, streaming, and which clips stand in which tar."""

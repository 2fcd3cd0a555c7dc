"""From a publisher's files to shards and pairs: adapters, catalogs, decoding, shards, leaks, pairs. No torch."""

"""What every artifact stands on: where it lies, how a file appears whole, digests, and the shard index."""

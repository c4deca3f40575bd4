"""Stage 1, prepare: read documents, tokenise, pack into sequences, write sequence shards."""

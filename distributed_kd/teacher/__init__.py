"""Stage 2, cache: run the teacher over sequence shards and write each one's soft targets."""

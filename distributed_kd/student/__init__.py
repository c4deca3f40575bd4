"""Stage 3, train: build the student, stream the cache in one global order, train with DeepSpeed."""

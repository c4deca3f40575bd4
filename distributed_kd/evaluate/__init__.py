"""Stage 4, evaluate: teacher, student and baseline on held-out documents, and the report."""

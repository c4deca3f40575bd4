"""Distributed KD: run the teacher once, cache its top-k logits, train students from the cache.

Four stages, one direction: prepare (corpus/) -> cache (teacher/) -> train (student/) -> evaluate.
Importing this package imports nothing heavy; torch, ray and transformers come with the stage that uses them.
"""

__version__ = "0.1.0"

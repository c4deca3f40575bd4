"""Models: where they lie, how they load, their tokenizer's fingerprint, and body and head apart."""

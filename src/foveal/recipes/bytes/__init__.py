"""Byte language models: next-byte loss, bits per byte, continuations."""

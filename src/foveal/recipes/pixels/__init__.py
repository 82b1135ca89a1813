"""Pixel language models: bits per dimension, drawing pictures and completing them."""

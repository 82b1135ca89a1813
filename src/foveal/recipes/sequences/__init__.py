"""Classifiers of long sequences: the Long Range Arena, texts, rows of grey pixels."""

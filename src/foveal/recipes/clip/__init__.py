"""CLIP: which caption goes with which picture."""

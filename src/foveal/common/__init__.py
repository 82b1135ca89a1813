"""The ground: words, files, checks and the processor. Imports nothing else of foveal."""

"""Image classifiers: cross-entropy, how often they are right, and where they look."""

"""Models that turn pictures into tokens: how well the pictures come back."""

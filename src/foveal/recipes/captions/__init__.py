"""DALL-E: bits per image token given the caption, and pictures from words."""

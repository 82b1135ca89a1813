"""Colours of the pictures; blue against orange is told apart by colour-blind readers too."""

INK = "#1d2733"
MUTED = "#8a97a6"
READ = "#1f6fb4"
QUERY = "#e07b00"
EMPTY = "#ffffff"
FUTURE = "#e9edf1"

"""The pattern explorer: one page that shows who attends to whom, made of the library's tables."""

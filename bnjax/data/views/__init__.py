"""Views: the pixels of an image that a network sees."""

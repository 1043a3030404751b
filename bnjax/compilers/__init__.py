"""Programs compiled for chips that are not here: which chips exist, and what a program costs."""

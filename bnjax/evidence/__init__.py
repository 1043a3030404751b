"""What a run leaves behind, and what is drawn and reported from it."""

"""Speed and cost, measured against named peers in one run."""

"""What all experiments share: an experiment is a config, arms, a way to train and a figure."""

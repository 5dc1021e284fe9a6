"""Crystals as a TFDS data set: `mp20_dataset_builder.Builder` and its sources."""

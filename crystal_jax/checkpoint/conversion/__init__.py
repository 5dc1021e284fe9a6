"""Conversion of checkpoints from one format to another, import into workdirs and export from them."""

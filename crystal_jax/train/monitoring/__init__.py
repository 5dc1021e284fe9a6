"""What a training run reports of itself: curves, goodput and profiler traces."""

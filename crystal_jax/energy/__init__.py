"""Energy models, relaxation, corrections and the convex hull. PyTorch is imported when a model is loaded."""

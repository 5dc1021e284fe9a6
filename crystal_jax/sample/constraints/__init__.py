"""Constraints on samples: masks on the device, and guides that the host evaluates."""

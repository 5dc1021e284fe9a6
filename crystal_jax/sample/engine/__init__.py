"""The inference engine: scheduler, decode state and decode step."""

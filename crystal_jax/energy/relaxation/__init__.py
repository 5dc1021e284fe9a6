"""Relaxation of many crystals, and its records."""

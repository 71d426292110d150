"""Runs a plan: one loop for one rank or a thousand."""

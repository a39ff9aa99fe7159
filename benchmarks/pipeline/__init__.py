"""Validation, gates and unattended operation: their cost, and what they survive."""

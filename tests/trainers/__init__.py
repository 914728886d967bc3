"""Policies as trainers leave them."""

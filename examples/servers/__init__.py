"""Robots whose policy runs in a server: clients, and a check of a server that is up."""

"""Clients for the storages a replica can live in."""

"""Connectors: one module an engine."""

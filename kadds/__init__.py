"""Kadds: reads a database's change log once, keeps every change, hands each company exactly its part."""

__version__ = "0.1.0"

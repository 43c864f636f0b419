"""Shipped with Kadds for whoever writes a connector: conformance suites for sources, sinks and pushers, and fakes.

A suite is a class to subclass in a test module. Its cells follow the declared abilities: what is declared must hold,
what is not declared must be refused by name or not happen.
"""

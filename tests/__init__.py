"""The tests: unit by part, connectors against real databases, acceptance from end to end, and the rules of the house.

A package, so that `tests.support` cannot be mistaken for a stray `tests` that another distribution installed.
"""

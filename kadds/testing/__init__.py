"""Shipped with Kadds for whoever writes a connector: conformance suites for sources, sinks and pushers, and fakes.

A suite is a class to subclass in a test module. Its cells follow the declared abilities: what is declared must hold,
what is not declared must be refused by name or not happen.
"""

from contextlib import suppress

with suppress(ImportError):  # the fakes need no pytest
    import pytest

    # A suite's assertions say what they compared, as those of the test module that subclasses it do.
    pytest.register_assert_rewrite(
        "kadds.testing.source_contract", "kadds.testing.sink_contract", "kadds.testing.pusher_contract"
    )

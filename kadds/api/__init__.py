"""The connector interface: all that a connector may import, and all that it has to know.

Read in this order: `change` (what a change is), `schema` (tables and types), `position` (places in a source's log and
in ours), `connector` (what a source and a sink promise), `settings` and `errors`.
"""

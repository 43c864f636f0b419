"""The engine moves data: from sources into the log, from the log into sinks.

It receives ready objects (opened sources and sinks, plain specifications) and never looks a connector up nor reads a
configuration. Read in this order: `spec` (what it is told), `supervisor` (the way in), `capture` (sources to log),
`dispatch` and `deliver` (log to sinks), `contract`, `net_change` and `history` (what becomes of the rows on the way).
"""

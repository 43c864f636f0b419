"""The configuration file as types: `load` reads it, checks all of it at once, and knows the place of everything.

Nothing that is written is ignored: what is unknown, misplaced, or not executed by this version is refused with
file, line and column. Secrets come out of here only as `Secret`, never as text.
"""

from kadds.config.contracts import Difference, Effect, differences
from kadds.config.editor import json_schema
from kadds.config.explain import explain
from kadds.config.load import Loaded, load
from kadds.config.model import (
    Configuration,
    LogSettings,
    MetricsSettings,
    Schedule,
    SinkEntry,
    SourceEntry,
    SubscriptionEntry,
    SubscriptionTable,
    TenantSettings,
)
from kadds.config.patterns import Explained, TablePatterns
from kadds.config.problems import ConfigurationProblems, Place, Problem
from kadds.config.register import Registration, read_registration, read_source_again
from kadds.config.where import where_columns

__all__ = [
    "Configuration",
    "ConfigurationProblems",
    "Difference",
    "Effect",
    "Explained",
    "Loaded",
    "LogSettings",
    "MetricsSettings",
    "Place",
    "Problem",
    "Registration",
    "Schedule",
    "SinkEntry",
    "SourceEntry",
    "SubscriptionEntry",
    "SubscriptionTable",
    "TablePatterns",
    "TenantSettings",
    "differences",
    "explain",
    "json_schema",
    "load",
    "read_registration",
    "read_source_again",
    "where_columns",
]

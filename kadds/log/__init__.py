"""The append-only store: journal, segments, index, control state. It knows nothing of databases.

`log.Log` is the way in. One noun per file; `docs/LOG_FORMAT.md` describes every byte.
"""

"""Files on disk: atomic writes, logs, locks, caches; and the processes that share work."""

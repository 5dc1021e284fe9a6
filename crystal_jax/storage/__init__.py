"""Storage on disk (atomic writes, JSONL logs, locks, caches) and worker pools."""

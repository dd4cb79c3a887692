"""The tests: unit (no server), integration (real PostgreSQL and SQLite), chaos (faults), docs (README runs)."""

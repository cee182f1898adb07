"""Models behind the routes: a pool of them, a worker thread each, generations and counts."""

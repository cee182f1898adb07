"""The models behind the routes: the model pool, one worker thread each, generations and metrics."""

"""Many requests over one model and one cache.

In reading order: params.py (what may be asked for), request.py (one request and its state),
block_pool.py (blocks and how they are found again), scheduler.py (whose tokens go next), batch.py
(rows for the model), sampler.py (logits to a token), engine.py (the step that joins them).
"""

"""All limits of the server in one place. Those of sampling parameters are in engine/params.py."""

from __future__ import annotations

# What a request may be
MAX_BODY_BYTES = 8 << 20  # an agent's 100,000 tokens of context are half a megabyte
MAX_HEADER_BYTES = 16 << 10
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 1 << 17  # of one body: as many are parsed in some 20 ms
MAX_JSON_KEYS = 1 << 15  # of all objects of one body: a key takes as long as several values
MAX_JSON_ESCAPES = 1 << 20  # backslashes in one body
INLINE_BODY_BYTES = 64 << 10  # a larger body is parsed and converted off the event loop
INLINE_TOKENS = 512  # an answer with the log-probabilities of more is written off the event loop
MAX_UNPARSED_BYTES = 80 << 20  # of all bodies that are being received, as they came
MAX_LARGE_BYTES = 112 << 20  # of memory, of all larger bodies that are parsed and not admitted yet
MAX_SMALL_BYTES = 48 << 20  # of memory, of all others that are
MAX_UNKNOWN_FIELDS = 128  # of one body; they are ignored
MAX_MESSAGES = 4096
MAX_PARTS = 4096  # of one message's content
MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 64 << 10  # of a response_format, or of one tool's parameters
MAX_PROMPTS = 128  # of one completions request; each makes `n` choices
MAX_CHOICES = 128  # of one completions request in all
MAX_PRIORITY = 9  # 0 is a person waiting, 9 is work in the background
MAX_NAME_CHARACTERS = 512
MAX_PRESETS = 1024  # on this machine, that clients may make

# How long things may take
HEAD_SECONDS = 10.0  # from a connection's first byte, or its opening, to the end of the headers
BODY_SECONDS = 60.0
IDLE_SECONDS = 15.0  # of a keep-alive connection between two requests
STALLED_SECONDS = 30.0  # a client that has not read for so long is disconnected
PING_SECONDS = 5.0  # a stream without output sends a comment after so long
DRAIN_SECONDS = 30.0  # for running requests to finish when the server shuts down
PREPARE_SECONDS = 30.0  # template, tokens and grammar of one request
METER_SECONDS = 30.0  # a counter of 262 kJ begins anew after two minutes at 2 kW

# How much at once
MAX_CONNECTIONS = 1024  # fewer where the system allows fewer open files
ACCEPTED_TOGETHER = 8
SPARE_FILES = 40  # file descriptors left for models, logs and the event loop
MAX_QUEUE = 512  # waiting requests, besides the running ones; then 429
MAX_PARALLEL = 512
PREPARE_THREADS = 2  # few: the model computes at the same time
MAX_BUFFERED_CHUNKS = 4096  # of one stream whose client reads slower than the model generates
MAX_RETRY_SECONDS = 60
SEND_BUFFER_BYTES = 128 << 10  # of one connection, in the system
MAX_KEPT_RESPONSES = 1024  # of /v1/responses, for `previous_response_id`
MAX_KEPT_BYTES = 64 << 20  # of them all
MAX_VECTOR_NUMBERS = 1 << 22  # of one answer: as JSON they are some 85 MB, written piece by piece
MAX_VECTOR_BYTES = 128 << 20  # of all vectors that are computed, wait or are sent; then others wait
VECTORS_PIECE = 1 << 14  # numbers written at once: some 10 ms, and 400 KB

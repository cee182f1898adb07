"""HTTP itself: connections, API keys and hosts, the access log, server-sent events."""

"""HTTP itself: connections, keys and hosts, one line in the log a request, server-sent events."""

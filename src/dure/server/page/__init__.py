"""The pages for a browser: a chat at /, what runs at /status, the API's description at /docs."""

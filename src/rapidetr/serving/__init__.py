"""The HTTP server: `rapidetr serve`, or `create_app` for other servers. Needs the extra `serve`."""

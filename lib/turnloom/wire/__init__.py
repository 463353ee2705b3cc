"""HTTP and JSON: what clients send and read. Nothing behind this package knows a status code."""

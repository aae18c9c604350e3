"""From wire formats to our types and back, by pure functions: no sockets, files, clocks or logging. A dialect is one folder."""

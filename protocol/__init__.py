"""The ground: values, wire format, envelopes, keys, weight streams. Pure: no sockets, files, threads or clock."""

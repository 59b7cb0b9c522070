"""Network beneath transports and stores: TLS, proxies, waits between attempts."""

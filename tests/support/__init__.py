"""Real servers, a fault proxy and small helpers shared by the tests."""

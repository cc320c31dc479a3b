"""Policy decides: pure functions of values, without I/O, clock or randomness of their own."""

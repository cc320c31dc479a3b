"""What crosses a floor, a process or a script? Frozen values, each with the one codec of its encoding."""

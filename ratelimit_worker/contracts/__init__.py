"""The values that travel between floors, processes and scripts: frozen structs, each with its one codec."""

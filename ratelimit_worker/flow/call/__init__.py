"""The life of one call: it is planned, admitted, made, concluded and settled."""

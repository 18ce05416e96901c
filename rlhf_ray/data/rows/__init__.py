"""Tokenized rows: as a table, in an order, as a stream, counted."""
